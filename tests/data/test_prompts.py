"""Prompts by name and by template: the texts that released code writes, and what is learned."""

import json
import pickle
from itertools import groupby

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from tests.data.conftest import byte_level, llama_like, unigram, wrapped
from tests.tiny import byte_tokenizer
from tuninglab.data.prompt import (
    IGNORED,
    answer_ids,
    count_kinds,
    count_tokens,
    decode_answer,
    dialogue_tokens,
    encode_dialogue,
    encode_prompt,
    make_prompt,
)
from tuninglab.data.prompt_formats import NAMED
from tuninglab.data.sample import Sample
from tuninglab.errors import UserError

IMAGE = {"type": "image"}
CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "<|head|>", "<|tail|>", "<|turn_ends|>", "<answer>"]
ALL = ["<s>", "</s>", "<|endofchunk|>", "<image>", "<PAD>", *CHAT_TOKENS]

# Of four kinds of chat models, in words of our own.
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
# LLaMA 3: a first token, a head with the role, contents trimmed, one end for every message.
HEADS = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|head|>' + message['role'] + '<|tail|>\\n\\n' + message['content'] | trim }}
{{- '<|turn_ends|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|tail|>\\n\\n' }}{% endif %}"""
# Mistral: no word before an answer, a blank before its end, the system message in the question.
BRACKETS = """\
{%- set first = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}
{{- bos_token }}
{%- for message in messages if message.role != 'system' %}
{%- if message.role == 'user' %}
{{- '[INST] ' + (first if loop.first else '') + message.content + ' [/INST]' }}
{%- else %}{{ ' ' + message.content + ' ' + eos_token }}
{%- endif %}
{%- endfor %}"""
# Gemma: other names for the roles, no system message.
MODEL_TURNS = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for message in messages %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<|im_start|>' + role + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- endfor %}"""
# LLaVA's of transformers: contents are lists of parts, and it writes the marks itself.
BY_PARTS = """\
{%- for message in messages %}
{{- message.role | upper ~ ': ' }}
{%- for part in message.content %}
{{- '<image>' if part.type == 'image' else part.text }}
{%- endfor %}
{{- '</s>\\n' if message.role == 'assistant' else ' ' }}
{%- endfor %}"""
# No special token anywhere: ours ends an answer.
PLAIN = """\
{%- for message in messages %}
{{- '# ' + message.role + '\\n' + message.content + '\\n' }}
{%- endfor %}"""
TEMPLATES = {
    "chatml": CHATML,
    "heads": HEADS,
    "brackets": BRACKETS,
    "model turns": MODEL_TURNS,
    "by parts": BY_PARTS,
    "plain": PLAIN,
}
CHOICES = {name: name for name in NAMED} | TEMPLATES


def text(value):
    return {"type": "text", "text": value}


def user(*parts):
    return {"role": "user", "content": [p if p == IMAGE else text(p) for p in parts]}


def answer(value, **more):
    return {"role": "assistant", "content": [text(value)], **more}


def system(value):
    return {"role": "system", "content": [text(value)]}


DIALOGUE = [user(IMAGE, "\nWhat colour?"), answer("red"), user("Sure?"), answer("blue 1")]
CAPTIONS = [user(IMAGE), answer("a red ball"), user(IMAGE), answer("a blue one")]


def chat_tokenizer():
    tokenizer = wrapped(byte_level(), True, True)
    tokenizer.add_special_tokens({"extra_special_tokens": CHAT_TOKENS})
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


def segments(encoded, tokenizer):
    """The text of each run of ids that are learned, or are not."""
    pairs = list(zip(encoded.input_ids, encoded.labels, strict=True))
    assert all(label in (-100, index) for index, label in pairs)
    runs = groupby(pairs, key=lambda pair: pair[1] != -100)
    return [(tokenizer.decode([index for index, _ in run]), learned) for learned, run in runs]


# Written out from the released code: what is in [[ ]] is learned.
MG = (
    "<s>Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request."
)
WRITTEN = {
    "tuninglab": (
        DIALOGUE,
        "<s>### Instruction:\n<image>\nWhat colour?\n\n### Response:\n[[red<|endofchunk|>]]\n\n"
        "### Instruction:\nSure?\n\n### Response:\n[[blue 1<|endofchunk|>]]",
    ),
    "multimodal_gpt": (
        DIALOGUE,
        MG + "\n\n### Image:\n<image>\n\n### Instruction:\nWhat colour?\n\n### Response:\n"
        "[[red</s>]]\n\n### Instruction:\nSure?\n\n### Response:\n[[blue 1</s>]]",
    ),
    "multimodal_gpt, no picture": (
        [user("Why?"), answer("So.")],
        MG + "\n\n### Instruction:\nWhy?\n\n### Response:\n[[So.</s>]]",
    ),
    "otter": (
        DIALOGUE,
        "<s><image>User: What colour? GPT:<answer>[[ red<|endofchunk|>]]"
        "User: Sure? GPT:<answer>[[ blue 1<|endofchunk|>]]",
    ),
    "otter, with a task": (
        [system("Be brief."), user(IMAGE, "Why?"), answer("So.")],
        "<s>Be brief.\n<image>User: Why? GPT:<answer>[[ So.<|endofchunk|>]]",
    ),
    "openflamingo-vqa": (
        DIALOGUE,
        "<s><image>Question:What colour? Short answer:[[red<|endofchunk|>]]\n"
        "Question:Sure? Short answer:[[blue 1<|endofchunk|>]]",
    ),
    "openflamingo-vqa, two pictures": (
        [user(IMAGE, "\n", IMAGE, "Alike?"), answer("no")],
        "<s><image><image>Question:Alike? Short answer:[[no<|endofchunk|>]]",
    ),
    "openflamingo-vqa, in the question": (
        [user("Is ", IMAGE, " as ", IMAGE, "?"), answer("no")],
        "<s>Question:Is <image> as <image>? Short answer:[[no<|endofchunk|>]]",
    ),
    "openflamingo-caption": (
        CAPTIONS,
        "<s><image>Output:[[a red ball<|endofchunk|>]]\n<image>Output:[[a blue one<|endofchunk|>]]",
    ),
    "chatml": (
        DIALOGUE,
        "<|im_start|>user\n<image>\nWhat colour?<|im_end|>\n<|im_start|>assistant\n"
        "[[red<|im_end|>]]\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
        "[[blue 1<|im_end|>]]\n",
    ),
    "heads": (
        DIALOGUE,
        "<s><|head|>user<|tail|>\n\n<image>\nWhat colour?<|turn_ends|><|head|>assistant<|tail|>"
        "\n\n[[red<|turn_ends|>]]<|head|>user<|tail|>\n\nSure?<|turn_ends|>"
        "<|head|>assistant<|tail|>\n\n[[blue 1<|turn_ends|>]]",
    ),
    "brackets": (
        [system("Be brief."), *DIALOGUE],
        "<s>[INST] Be brief.\n\n<image>\nWhat colour? [/INST] [[red </s>]]"
        "[INST] Sure? [/INST] [[blue 1 </s>]]",
    ),
    "model turns": (
        DIALOGUE,
        "<s><|im_start|>user\n<image>\nWhat colour?<|im_end|>\n<|im_start|>model\n"
        "[[red<|im_end|>]]\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>model\n"
        "[[blue 1<|im_end|>]]\n",
    ),
    "by parts": (
        [system("Be brief."), *DIALOGUE],
        "SYSTEM: Be brief. USER: <image>\nWhat colour? ASSISTANT: [[red</s>]]\n"
        "USER: Sure? ASSISTANT: [[blue 1</s>]]\n",
    ),
    "plain": (
        DIALOGUE,
        "# user\n<image>\nWhat colour?\n# assistant\n[[red<|endofchunk|>]]\n"
        "# user\nSure?\n# assistant\n[[blue 1<|endofchunk|>]]\n",
    ),
}


def written(marked):
    """(text, learned) of what stands outside and inside of [[ ]]."""
    pieces = marked.replace("]]", "[[").split("[[")
    return [(piece, bool(place % 2)) for place, piece in enumerate(pieces) if piece]


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_read_and_learned_is_the_text_written_out(tokenizer, name):
    messages, marked = WRITTEN[name]
    prompt = make_prompt(CHOICES[name.partition(", ")[0]], tokenizer)
    encoded = encode_dialogue(messages, tokenizer, prompt)
    assert segments(encoded, tokenizer) == written(marked)
    # The first answer is not to be learned; neither is its end.
    skipped = [dict(m) for m in messages]
    first = next(m for m in skipped if m["role"] == "assistant")
    first["loss"] = False
    again = encode_dialogue(skipped, tokenizer, prompt)
    assert again.input_ids == encoded.input_ids
    learned = [piece for piece, is_learned in written(marked) if is_learned]
    found = [piece for piece, is_learned in segments(again, tokenizer) if is_learned]
    assert found == learned[1:]


@pytest.mark.parametrize("name", CHOICES)
def test_generation_starts_where_the_answer_did_and_ends_where_it_did(tokenizer, name):
    prompt = make_prompt(CHOICES[name], tokenizer)
    messages = CAPTIONS if name == "openflamingo-caption" else DIALOGUE
    whole = encode_dialogue(messages, tokenizer, prompt)
    for last in (0, 2):
        asked = encode_prompt(messages[: last + 1], tokenizer, prompt)
        assert whole.input_ids[: len(asked)] == asked
        learned = whole.labels[len(asked) :]
        assert learned[0] != -100 == whole.labels[len(asked) - 1]
        answered = whole.input_ids[len(asked) :]
        truth = messages[last + 1]["content"][0]["text"]
        assert decode_answer(answered, tokenizer, prompt) == truth
        assert tokenizer.convert_tokens_to_ids(prompt.end) in learned


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=8)
PARTS = st.lists(st.just(IMAGE) | WORDS.map(text), max_size=4)
ROLES = st.sampled_from(["system", "user", "assistant"])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(ROLES, PARTS), min_size=1, max_size=5), st.booleans())
@pytest.mark.parametrize("name", NAMED)
def test_the_jinja_of_a_named_prompt_renders_its_spans(tokenizer, name, dialogue, ask):
    prompt = make_prompt(name, tokenizer)
    messages = [{"role": role, "content": parts} for role, parts in dialogue]
    options = {"chat_template": prompt.chat_template, "add_generation_prompt": ask}
    try:
        expected = "<s>" + prompt.text(messages, ask)
    except ValueError as error:
        with pytest.raises(Exception, match="has no place for a"):
            tokenizer.apply_chat_template(messages, tokenize=False, **options)
        assert name in str(error)
        return
    assert tokenizer.apply_chat_template(messages, tokenize=False, **options) == expected


@pytest.mark.parametrize("name", ["chatml", "heads", "brackets", "model turns"])
def test_ids_are_those_of_transformers_where_a_token_is_a_byte(name):
    # Nothing merges across a cut, so one text tokenized whole has the same ids.
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": CHAT_TOKENS})
    prompt = make_prompt(TEMPLATES[name], tokenizer)
    asked = [user("<image>What colour?"), answer("red"), user("Sure?"), answer("blue 1")]
    as_texts = [{"role": m["role"], "content": m["content"][0]["text"]} for m in asked]
    expected = tokenizer.apply_chat_template(as_texts, chat_template=TEMPLATES[name])["input_ids"]
    pictured = [user(IMAGE, "What colour?"), *asked[1:]]
    assert encode_dialogue(pictured, tokenizer, prompt).input_ids == expected


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("kind", [llama_like, unigram])
def test_tokenizers_that_put_a_blank_before_each_text_learn_the_same(kind, name):
    tokenizer = wrapped(kind(), True, True)
    tokenizer.add_special_tokens({"extra_special_tokens": CHAT_TOKENS})
    prompt = make_prompt(CHOICES[name], tokenizer)
    messages = CAPTIONS if name == "openflamingo-caption" else DIALOGUE
    encoded = encode_dialogue(messages, tokenizer, prompt)
    end = tokenizer.convert_tokens_to_ids(prompt.end)
    # What a template or prompt writes before and after an answer is tokenized with its side of it.
    before, after = (" " if name == "otter" else "", " " if name == "brackets" else "")
    expected = []
    for message in messages[1::2]:
        expected += plain(before + message["content"][0]["text"], tokenizer)
        expected += [*(plain(after, tokenizer) if after else []), end]
    assert [label for label in encoded.labels if label != -100] == expected


def plain(value, tokenizer):
    return tokenizer(value, add_special_tokens=False)["input_ids"]


def test_a_token_that_takes_in_blanks_does_so_as_in_transformers():
    tokenizer = byte_tokenizer()
    greedy = [AddedToken(token, rstrip=True, special=True) for token in ("<|user|>", "<|end|>")]
    tokenizer.add_special_tokens({"extra_special_tokens": greedy})
    template = """\
{%- for message in messages %}
{{- ('<|user|>' if message.role == 'user' else '') + '\\n' + message.content + '<|end|>\\n' }}
{%- endfor %}"""
    prompt = make_prompt(template, tokenizer)
    asked = [user("Why?"), answer("So."), user("Sure?"), answer("Yes.")]
    as_texts = [{"role": m["role"], "content": m["content"][0]["text"]} for m in asked]
    encoded = encode_dialogue(asked, tokenizer, prompt)
    expected = tokenizer.apply_chat_template(as_texts, chat_template=template)["input_ids"]
    assert encoded.input_ids == expected
    learned = [i for i in encoded.labels if i != -100]
    ids = tokenizer("So.<|end|>Yes.<|end|>", add_special_tokens=False)["input_ids"]
    assert learned == ids and prompt.end == "<|end|>"


PROSE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
TRICKY = st.sampled_from([*ALL, "<", "[INST]", "image", "\ue0f00\ue0f1", "{{ 1 }}", "&amp;", "\n"])
TEXTS = st.lists(PROSE | TRICKY, min_size=1, max_size=4).map("".join)
SAID = TEXTS.map(str.strip).filter(bool)
TURNS = st.lists(
    st.tuples(st.lists(st.just(IMAGE) | SAID, min_size=1, max_size=3), SAID, st.booleans()),
    min_size=1,
    max_size=3,
)


def dialogue_of(name, turns):
    messages = []
    for parts, reply, learned in turns:
        parts = [IMAGE] if name == "openflamingo-caption" else parts
        messages += [user(*parts), answer(reply, **({} if learned else {"loss": False}))]
    return messages


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(turns=TURNS)
@pytest.mark.parametrize("name", CHOICES)
def test_any_dialogue_reads_as_its_text_and_learns_answers_and_ends_alone(tokenizer, name, turns):
    prompt = make_prompt(CHOICES[name], tokenizer)
    messages = dialogue_of(name, turns)
    encoded = encode_dialogue(messages, tokenizer, prompt)
    start = "<s>" if prompt.adds_bos else ""
    assert tokenizer.decode(encoded.input_ids) == start + prompt.text(messages)
    before = {"otter": " "}.get(name, "")
    after = {"brackets": " "}.get(name, "")
    replies = [before + reply + after + prompt.end for _, reply, learned in turns if learned]
    learned = [label for label in encoded.labels if label != -100]
    assert tokenizer.decode(learned) == "".join(replies)
    # What users wrote became no special token: only the prompt's own are there.
    special = {tokenizer.convert_tokens_to_ids(token) for token in ALL}
    empty = [
        user(*(IMAGE if p == IMAGE else "a" for p in m["content"]))
        if m["role"] == "user"
        else answer("a")
        for m in messages
    ]
    expected = encode_dialogue(empty, tokenizer, prompt).input_ids
    assert [i for i in encoded.input_ids if i in special] == [i for i in expected if i in special]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(dialogues=st.lists(TURNS, min_size=1, max_size=4))
@pytest.mark.parametrize("name", CHOICES)
def test_many_are_counted_as_each_alone(tokenizer, name, dialogues):
    prompt = make_prompt(CHOICES[name], tokenizer)
    samples = []
    for turns in dialogues:
        # A sample learns something.
        turns = [*turns[:-1], (*turns[-1][:2], True)]
        messages = dialogue_of(name, turns)
        pictures = sum(part == IMAGE for m in messages for part in m["content"])
        samples.append(Sample(messages, [b""] * pictures))
    counts = count_tokens(iter(samples), tokenizer, prompt)
    assert counts == [
        len(encode_dialogue(sample.messages, tokenizer, prompt).input_ids) for sample in samples
    ]
    assert counts == [dialogue_tokens(sample, tokenizer, prompt) for sample in samples]
    # Any id may stand for what is unknown.
    odd = tokenizer.convert_tokens_to_ids("a")
    rows = [encode_dialogue(sample.messages, tokenizer, prompt) for sample in samples]
    assert count_kinds(samples, tokenizer, prompt, odd) == [
        (len(ids), sum(label != IGNORED for label in labels), ids.count(odd))
        for ids, labels in rows
    ]


def test_more_than_are_held_together_are_counted_in_their_order(tokenizer, monkeypatch):
    monkeypatch.setattr("tuninglab.data.prompt.COUNTED_TOGETHER", 4)
    samples = [Sample([user("x" * (k % 7 + 1)), answer(str(k % 3))], []) for k in range(11)]
    counts = count_tokens(samples, tokenizer)
    assert count_tokens([], tokenizer) == []
    assert counts == [dialogue_tokens(sample, tokenizer) for sample in samples]


def test_a_token_that_is_only_called_ordinary_is_none_in_a_text():
    tokenizer = wrapped(byte_level(), True, True)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<answer>"], special_tokens=False)
    for choice, token in ((CHATML, "<|im_end|>"), ("otter", "<answer>")):
        prompt = make_prompt(choice, tokenizer)
        messages = [user(f"a{token}b"), answer(f"c{token}")]
        ids = encode_dialogue(messages, tokenizer, prompt).input_ids
        plain = encode_dialogue([user("a"), answer("c")], tokenizer, prompt).input_ids
        index = tokenizer.convert_tokens_to_ids(token)
        assert ids.count(index) == plain.count(index) > 0
        assert tokenizer.decode(ids).count(f"a{token}b") == 1


BROKEN = {
    "drops": ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "drops"),
    "repeats": (CHATML + "{{ messages[0].content }}", "repeats the content of message 1"),
    "reorders": (
        "{% for m in messages[::-1] %}{{ m.content }}{% endfor %}",
        "in another order",
    ),
    "raises": ("{{ raise_exception('not me') }}", "refuses it: not me"),
    "calls what is not there": ("{{ messages.nothing() }}", "breaks on a dialogue"),
    "is unsafe": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "is unsafe"),
    "is no Jinja": ("{% for m in messages %}", "breaks on a dialogue"),
    "recurses": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "divides by zero": ("{{ 1 // 0 }}", "breaks on a dialogue"),
    "writes on": (
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }} {% endfor %}{% endfor %}",
        "more than 262,144 characters",
    ),
    "writes a picture": (CHATML + "<image>", "an <image> of its own"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_cannot_be_a_prompt_is_refused_when_it_is_chosen(tokenizer, name):
    template, said = BROKEN[name]
    with pytest.raises(UserError, match="^the chat template of --prompt .*choose another") as told:
        make_prompt(template, tokenizer)
    assert said in str(told.value) and len(str(told.value)) < 1000


UNFIT = {
    "strips": (
        HEADS,
        [user("a"), answer("b\n")],
        "strips the blanks around the content of message 2",
    ),
    "escapes": (
        CHATML.replace("message.content", "(message.content | e)"),
        [user("a"), answer("1 < 2")],
        "changes (escapes, cuts or moves) the content of message 2 (assistant)",
    ),
    "cuts": (
        CHATML.replace("message.content", "message.content.split('</think>')[-1]"),
        [user("a"), answer("hm</think>b")],
        "message 2 (assistant)",
    ),
    "ignores the system message": (
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
        [system("Be brief."), user("a"), answer("b")],
        "ignores the system message",
    ),
    "refuses the system message": (
        MODEL_TURNS,
        [system("Be brief."), user("a"), answer("b")],
        "refuses it: no system role",
    ),
    "the system message elsewhere": (
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
        "{{ messages[0].content if messages[0].role == 'system' }}",
        [system("Be brief."), user("a"), answer("b")],
        "in another order",
    ),
    "a mixed end": (
        CHATML.replace("'<|im_end|>\\n'", "('' if messages|length == 2 else '<|im_end|>')"),
        [user("a"), answer("b")],
        "does not end message 2 with <|im_end|>",
    ),
    "multimodal_gpt": ("multimodal_gpt", [system("s"), user("a"), answer("b")], "system message"),
    "openflamingo-vqa": (
        "openflamingo-vqa",
        [system("s"), user("a"), answer("b")],
        "has no place for a system message",
    ),
    "openflamingo-caption": (
        "openflamingo-caption",
        [user(IMAGE, "Say."), answer("b")],
        "message 1 (user) holds a text, and --prompt openflamingo-caption has no place",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_dialogue_that_a_prompt_has_no_place_for_is_named(tokenizer, name):
    choice, messages, said = UNFIT[name]
    prompt = make_prompt(choice, tokenizer)
    pictures = sum(part == IMAGE for m in messages for part in m["content"])
    sample = Sample(messages, [b""] * pictures, origin="my.json, record 3")
    for look in (
        dialogue_tokens,
        lambda s, *more: answer_ids([s], *more),
        lambda s, *more: count_tokens([s], *more),
    ):
        with pytest.raises(UserError, match="^my.json, record 3: ") as told:
            look(sample, tokenizer, prompt)
        assert said in str(told.value)


def test_a_template_that_names_the_day_names_the_same_every_day(tokenizer):
    dated = make_prompt("{{ strftime_now('%d %b %Y') }} " + CHATML, tokenizer)
    assert dated.text(DIALOGUE).startswith("26 Jul 2024<|im_start|>user")


def test_the_tokenizers_own_template_is_taken_and_ours_is_not_taken_for_it(tokenizer):
    own = chat_tokenizer()
    own.chat_template = CHATML
    assert make_prompt("chat_template", own) == make_prompt(CHATML, tokenizer)
    own.chat_template = {"default": CHATML, "tool_use": "x"}
    assert make_prompt("chat_template", own) == make_prompt(CHATML, tokenizer)
    for none in (None, NAMED["tuninglab"].chat_template, {"tool_use": "x"}):
        own.chat_template = none
        with pytest.raises(UserError, match="no chat template of its own"):
            make_prompt("chat_template", own)


def test_a_prompt_is_what_it_keeps_of_itself_and_travels_to_workers(tokenizer):
    for choice in CHOICES.values():
        prompt = make_prompt(choice, tokenizer)
        assert pickle.loads(pickle.dumps(prompt)) == prompt
        kept = json.loads(json.dumps(prompt.choice))
        assert kept == choice and make_prompt(kept, tokenizer) == prompt
        assert make_prompt(prompt.chat_template, tokenizer) == prompt


def test_an_unknown_prompt_and_a_tokenizer_without_an_end_are_refused(tokenizer):
    with pytest.raises(UserError, match="the prompt is 'ottr'; expected one of tuninglab, "):
        make_prompt("ottr", tokenizer)
    bare = chat_tokenizer()
    bare.eos_token = None
    with pytest.raises(UserError, match="multimodal_gpt ends answers with the tokenizer's end"):
        make_prompt("multimodal_gpt", bare)


@pytest.mark.parametrize("name", CHOICES)
def test_answers_of_many_are_those_of_each_alone(tokenizer, name):
    prompt = make_prompt(CHOICES[name], tokenizer)
    turns = [[([IMAGE], "Yes.", True), ([IMAGE], "No.", number != 1)] for number in range(3)]
    samples = [Sample(dialogue_of(name, of), [b""] * 2) for of in turns]
    labels = (encode_dialogue(sample.messages, tokenizer, prompt).labels for sample in samples)
    expected = [[label for label in row if label != -100] for row in labels]
    assert answer_ids(samples, tokenizer, prompt) == expected
    # In the second, the second answer is not learned.
    assert expected[0] == expected[2] and len(expected[1]) < len(expected[0])

import gc
import weakref

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.data.conftest import byte_level, wrapped
from tuninglab.data.prompt import decode_answer, encode_dialogue, encode_prompt

IMAGE = {"type": "image"}
SPECIAL = ["<s>", "</s>", "<|endofchunk|>", "<image>", "<PAD>"]


def text(value):
    return {"type": "text", "text": value}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def answer(value):
    return {"role": "assistant", "content": [text(value)]}


DIALOGUE = [
    {"role": "system", "content": [text("Be brief.")]},
    user(IMAGE, text("What colour"), IMAGE, text("is it?")),
    answer("red"),
    user(text("Sure?")),
    answer("blue 1"),
]


def plain(tokenizer, value):
    return tokenizer(value, add_special_tokens=False)["input_ids"]


def test_ids_and_labels_are_those_of_the_format_written_out(tokenizer):
    image = [tokenizer.convert_tokens_to_ids("<image>")]
    end = [tokenizer.convert_tokens_to_ids("<|endofchunk|>")]
    blocks = [  # (ids, learned) piece by piece, independent of the code under test
        ([tokenizer.bos_token_id] if tokenizer.bos_token else [], False),
        (plain(tokenizer, "Be brief.") + plain(tokenizer, "\n\n"), False),
        (plain(tokenizer, "### Instruction:\n") + image, False),
        (plain(tokenizer, "What colour") + image + plain(tokenizer, "is it?"), False),
        (plain(tokenizer, "\n\n") + plain(tokenizer, "### Response:\n"), False),
        (plain(tokenizer, "red") + end, True),
        (plain(tokenizer, "\n\n") + plain(tokenizer, "### Instruction:\n"), False),
        (plain(tokenizer, "Sure?") + plain(tokenizer, "\n\n"), False),
        (plain(tokenizer, "### Response:\n"), False),
        (plain(tokenizer, "blue 1") + end, True),
    ]
    encoded = encode_dialogue(DIALOGUE, tokenizer)
    assert encoded.input_ids == [index for ids, _ in blocks for index in ids]
    expected = [index if learned else -100 for ids, learned in blocks for index in ids]
    assert encoded.labels == expected


def test_the_bytes_of_a_byte_level_prompt_are_the_documented_text(processor):
    encoded = encode_dialogue(DIALOGUE, processor.tokenizer)
    assert processor.tokenizer.decode(encoded.input_ids) == (
        "<s>Be brief.\n\n### Instruction:\n<image>What colour<image>is it?\n\n### Response:\nred"
        "<|endofchunk|>\n\n### Instruction:\nSure?\n\n### Response:\nblue 1<|endofchunk|>"
    )


PROSE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
TRICKY = st.sampled_from([*SPECIAL, "＜s＞", "＜image＞", "<", ">", "image", " ", "\n\n"])
TEXTS = st.lists(PROSE | TRICKY, min_size=1, max_size=5).map("".join)
PARTS = st.lists(st.just(IMAGE) | TEXTS.map(text), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(turns=st.lists(st.tuples(PARTS, TEXTS), min_size=1, max_size=3), system=st.none() | TEXTS)
def test_only_our_own_marks_become_special(tokenizer, turns, system):
    messages = [] if system is None else [{"role": "system", "content": [text(system)]}]
    for parts, reply in turns:
        messages += [user(*parts), answer(reply)]
    encoded = encode_dialogue(messages, tokenizer)
    images = sum(part == IMAGE for parts, _ in turns for part in parts)
    found = [tokenizer.convert_ids_to_tokens(index) for index in encoded.input_ids]
    found = [token for token in found if token in SPECIAL]
    starts = ["<s>"] if tokenizer.bos_token else []
    assert sorted(found) == sorted(
        [*starts, *["<image>"] * images, *["<|endofchunk|>"] * len(turns)]
    )
    # Generation continues exactly where training's answer starts, at every turn.
    for last in range(len(messages)):
        if messages[last]["role"] != "user":
            continue
        prompt = encode_prompt(messages[: last + 1], tokenizer)
        whole = encode_dialogue(messages[: last + 2], tokenizer)
        assert whole.input_ids[: len(prompt)] == prompt
        assert whole.labels[len(prompt) :] == whole.input_ids[len(prompt) :]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(reply=TEXTS)
def test_answers_survive_the_way_there_and_back(processor, reply):
    tokenizer = processor.tokenizer
    encoded = encode_dialogue([user(text("q")), answer(reply)], tokenizer)
    learned = [index for index in encoded.labels if index != -100]
    assert decode_answer(learned, tokenizer) == reply.strip()
    assert decode_answer([*learned, *learned], tokenizer) == reply.strip()


def test_literal_special_tokens_in_an_answer_are_spelled(tokenizer):
    reply = "red <s>a</s> blue"
    encoded = encode_dialogue([user(text("q")), answer(reply)], tokenizer)
    learned = [index for index in encoded.labels if index != -100]
    assert decode_answer(learned, tokenizer) == reply


def test_special_tokens_are_looked_up_once_and_forgotten_with_the_tokenizer(monkeypatch):
    tokenizer = wrapped(byte_level(), True, True)
    kind = type(tokenizer)
    looked, own = [], kind.added_tokens_decoder
    seen = property(lambda self: looked.append(id(self)) or own.fget(self))
    monkeypatch.setattr(kind, "added_tokens_decoder", seen)
    before = [encode_dialogue(DIALOGUE, tokenizer) for _ in range(3)]
    assert before[0] == before[1] == before[2] and looked.count(id(tokenizer)) == 1
    # A token that is added later is none in a text either.
    tokenizer.add_special_tokens({"extra_special_tokens": ["<more>"]})
    ids = encode_dialogue([user(text("a<more>b")), answer("c")], tokenizer).input_ids
    assert tokenizer.convert_tokens_to_ids("<more>") not in ids
    assert tokenizer.decode(ids).count("a<more>b") == 1
    monkeypatch.undo()
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_generation_stops_at_any_end(processor):
    tokenizer = processor.tokenizer
    red = plain(tokenizer, "red")
    for end in ("<|endofchunk|>", "</s>", "<PAD>"):
        index = tokenizer.convert_tokens_to_ids(end)
        assert decode_answer([*red, index, *red], tokenizer) == "red"
    assert decode_answer([], tokenizer) == ""


def test_plain_strings_and_empty_system_messages_are_accepted(tokenizer):
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "<image>a"},
        {"role": "assistant", "content": "b"},
    ]
    expected = encode_dialogue([user(IMAGE, text("a")), answer("b")], tokenizer)
    assert encode_dialogue(messages, tokenizer) == expected


def test_a_tokenizer_without_the_marks_is_refused():
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match="has no token <image>"):
        encode_dialogue([user(text("a")), answer("b")], bare)


def test_a_prompt_must_end_with_the_user(processor):
    for messages in ([], [user(text("a")), answer("b")]):
        with pytest.raises(ValueError, match="expected the user's"):
            encode_prompt(messages, processor.tokenizer)

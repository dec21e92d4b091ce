"""`processor.apply_chat_template` says what training reads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from tests.tiny import processor_of, tiny_tokenizer
from tuninglab import FlamingoProcessor
from tuninglab.data.prompt import encode_dialogue, encode_prompt
from tuninglab.data.prompt_formats import TUNINGLAB
from tuninglab.data.sample import normal_messages
from tuninglab.errors import UserError

RED = Image.new("RGB", (20, 16), "red")
DIALOGUES = {
    "one": [{"role": "user", "content": "<image>colour?"}],
    "parts": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image", "image": RED}, {"type": "text", "text": "colour?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": "sure?"},
    ],
    "llava's roles": [
        {"role": "human", "content": "<image>\n<image> which?"},
        {"role": "gpt", "content": "both"},
        {"role": "human", "content": ""},
    ],
    "an empty system message": [
        {"role": "system", "content": ""},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ],
}


@pytest.fixture(scope="module")
def processors():
    """The shipped one, whose tokenizer joins what stands together, and a tiny one."""
    shipped = FlamingoProcessor.from_pretrained("embedded")
    return {"embedded": shipped, "tiny": processor_of(tiny_tokenizer())}


def own(dialogue, tokenizer, prompt):
    messages = normal_messages(dialogue)
    return (
        encode_prompt(messages, tokenizer)
        if prompt
        else encode_dialogue(messages, tokenizer).input_ids
    )


@pytest.mark.parametrize("which", ["embedded", "tiny"])
@pytest.mark.parametrize("name", DIALOGUES)
def test_ids_and_text_are_those_of_training(processors, which, name):
    processor, dialogue = processors[which], DIALOGUES[name]
    asked = dialogue[-1]["role"] in ("user", "human")
    for prompt in {False, asked}:
        ids = own(dialogue, processor.tokenizer, prompt)
        options = {"add_generation_prompt": prompt}
        found = processor.apply_chat_template(dialogue, tokenize=True, **options)
        assert found.tolist() == [ids]
        text = processor.apply_chat_template(dialogue, **options)
        assert flat(processor, text) == flat(processor, processor.decode(ids))


def flat(processor, text):
    """A text as this tokenizer can give it back: blanks beside tokens are not in the ids."""
    return "".join(text.split())


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=12)
PARTS = st.one_of(
    WORDS,
    st.lists(
        st.one_of(st.just({"type": "image"}), WORDS.map(lambda t: {"type": "text", "text": t}))
    ),
)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), PARTS), min_size=1))
@settings(max_examples=50, deadline=None)
def test_any_dialogue_renders_as_its_spans(dialogue):
    processor = processor_of(tiny_tokenizer())
    messages = [{"role": role, "content": content} for role, content in dialogue]
    text = processor.apply_chat_template(messages)
    spans = TUNINGLAB.spans(normal_messages(messages))
    said = "".join("<image>" if kind == "image" else text for kind, text, _ in spans)
    assert text == (processor.tokenizer.bos_token or "") + said


def test_a_batch_with_its_pictures(processors):
    processor = processors["embedded"]
    dialogues = [DIALOGUES["one"], DIALOGUES["parts"], [{"role": "user", "content": "hello"}]]
    images = [[RED], [RED], []]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    batch = processor.apply_chat_template(dialogues, images=images, **options)
    rows = zip(batch["input_ids"], batch["attention_mask"], dialogues, strict=True)
    for row, mask, dialogue in rows:
        assert row[mask.bool()].tolist() == own(dialogue, processor.tokenizer, True)
        assert not mask[: -int(mask.sum())].any()
    assert batch["pixel_values"].shape == (3, 1, 1, 3, 96, 96)
    # Pictures in the parts themselves, as an object, a path or bytes.
    alone = processor.apply_chat_template(DIALOGUES["parts"], **options)
    assert torch.equal(alone["pixel_values"][0, 0], batch["pixel_values"][1, 0])
    with pytest.raises(ValueError, match="dialogue 0 has 1 <image> marks but 0 pictures"):
        processor.apply_chat_template(DIALOGUES["one"], **options)


def test_pictures_from_files(processors, tmp_path):
    RED.save(tmp_path / "red.png")
    processor, pixels = processors["embedded"], []
    data = (tmp_path / "red.png").read_bytes()
    for own_picture in (
        {"path": tmp_path / "red.png", "image": None},
        {"bytes": data},
        {"image": RED},
    ):
        content = [{"type": "image", **own_picture}, {"type": "text", "text": "colour?"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True
        )
        pixels.append(inputs["pixel_values"])
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])


def test_a_rendered_chat_gets_no_second_first_token(processors):
    processor = processors["embedded"]
    text = processor.apply_chat_template(DIALOGUES["one"], add_generation_prompt=True)
    ids = processor(text=text, images=[[RED]])["input_ids"][0].tolist()
    assert ids.count(processor.tokenizer.bos_token_id) == 1


def test_the_template_is_saved_and_another_one_is_kept(processors, tmp_path):
    processors["embedded"].save_pretrained(tmp_path / "ours")
    loaded = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours" / "chat_template.jinja").is_file()
    assert loaded.apply_chat_template(DIALOGUES["one"]).endswith("<image>colour?\n\n")
    # A chat model's own template came with its tokenizer, but nobody trains on it here.
    parts = processors["tiny"]
    parts.tokenizer.chat_template = "{{ 'other' }}"
    again = FlamingoProcessor(parts.image_processor, parts.tokenizer)
    again.save_pretrained(tmp_path / "chat")
    loaded = AutoProcessor.from_pretrained(tmp_path / "chat")
    assert loaded.apply_chat_template(DIALOGUES["one"]).endswith("<image>colour?\n\n")
    own = FlamingoProcessor(parts.image_processor, parts.tokenizer, chat_template="{{ 'mine' }}")
    own.save_pretrained(tmp_path / "own")
    assert (
        AutoProcessor.from_pretrained(tmp_path / "own").apply_chat_template(DIALOGUES["one"])
        == "mine"
    )


@pytest.mark.parametrize("name", ["multimodal_gpt", "otter", "openflamingo-vqa", "own"])
def test_another_prompt_is_that_of_the_processor_and_saved_with_it(processors, name, tmp_path):
    own = "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}"
    choice = own if name == "own" else name
    parts = processors["tiny"]
    processor = FlamingoProcessor(parts.image_processor, parts.tokenizer)
    processor.use_prompt(choice)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.prompt == processor.prompt and loaded.prompt.choice == choice
    dialogue = DIALOGUES["one"]
    messages = normal_messages(dialogue)
    options = {"add_generation_prompt": True, "tokenize": True}
    found = loaded.apply_chat_template(dialogue, **options)
    assert found.tolist() == [encode_prompt(messages, loaded.tokenizer, loaded.prompt)]
    found = loaded.apply_chat_template(dialogue, tokenize=True)
    assert found.tolist() == [encode_dialogue(messages, loaded.tokenizer, loaded.prompt).input_ids]
    start = "<s>" if loaded.prompt.adds_bos else ""
    assert loaded.apply_chat_template(dialogue) == start + loaded.prompt.text(messages)
    with pytest.raises(UserError, match="the prompt is 'nobody'"):
        processor.use_prompt("nobody")
    assert processor.prompt.choice == choice


def test_the_tokenizers_own_template_becomes_that_of_the_processor(tmp_path):
    own = "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}"
    processor = processor_of(tiny_tokenizer())
    assert processor.prompt == TUNINGLAB
    processor.tokenizer.chat_template = own
    assert processor.prompt == TUNINGLAB
    processor.use_prompt("chat_template")
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.prompt.choice == own and loaded.prompt == processor.prompt
    loaded.chat_template = {"tool_use": own}
    with pytest.raises(UserError, match="The model's chat templates: "):
        loaded.prompt  # noqa: B018

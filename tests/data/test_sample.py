import copy

import pytest
from PIL import Image

from tuninglab.data.sample import Sample


def user(content):
    return {"role": "user", "content": content}


def answer(content):
    return {"role": "assistant", "content": content}


SURROGATE = "\ud800"
BAD_DIALOGUES = {
    "expected a list of messages": [None, [], "text", {"role": "user"}],
    "message 1 is 5; expected an object": [[5, answer("a")]],
    "dialogue is empty; expected": [[]],
    "dialogue is null": [None],
    "role is missing; known": [[{"content": "x"}, answer("a")]],
    "role is null; known": [[{"role": None, "content": "x"}, answer("a")]],
    "role is 'robot'; known: system, user (or human), assistant (or gpt)": [
        [{"role": "robot", "content": "x"}, answer("a")]
    ],
    "role is a list of 0": [[{"role": [], "content": "x"}, answer("a")]],
    "there is no answer": [[user("a")], [{"role": "system", "content": "x"}]],
    "the answer is empty": [
        [user("a"), answer("")],
        [user("a"), answer(" \n")],
        [user("a"), answer([])],
    ],
    "the question is empty": [[user(""), answer("a")], [user("  "), answer("a")]],
    "message 2 (user) follows another user": [[user("a"), user("b"), answer("c")]],
    "message 3 (assistant) follows another": [[user("a"), answer("b"), answer("c")]],
    "message 1 (assistant) stands first": [[answer("a"), user("b"), answer("c")]],
    "message 3 is a system message": [[user("a"), answer("b"), {"role": "system", "content": "x"}]],
    "last user message has no answer": [[user("a"), answer("b"), user("c")]],
    "content is null": [[user(None), answer("a")]],
    "content is missing": [[{"role": "user"}, answer("a")]],
    "content is 5": [[user(5), answer("a")]],
    "a part is unknown ('text')": [[user(["text"]), answer("a")]],
    '(type \'image_url\'): write {"type": "image"} and list the file under "images"': [
        [user([{"type": "image_url", "image_url": {"url": "a.png"}}]), answer("a")]
    ],
    "a part is unknown (type missing)": [[user([{"text": "x"}]), answer("a")]],
    "the text of a part is missing": [[user([{"type": "text"}]), answer("a")]],
    "the text of a part is null": [[user([{"type": "text", "text": None}]), answer("a")]],
    "half of a surrogate pair": [[user(SURROGATE), answer("a")], [user("a"), answer(SURROGATE)]],
    "message 2 (assistant) holds an <image> mark": [[user("a"), answer("<image> a")]],
    'message 2: "loss" is 0; expected true or false': [[user("a"), answer("b") | {"loss": 0}]],
    'message 1: "loss" is true, but this is a user message': [
        [user("a") | {"loss": True}, answer("b")]
    ],
    "no answer is learned": [[user("a"), answer("b") | {"loss": False}]],
    "1 <image> marks in the messages but 0 images": [[user("<image>?"), answer("a")]],
}


@pytest.mark.parametrize("words", BAD_DIALOGUES)
def test_bad_dialogues_are_named(words):
    for messages in BAD_DIALOGUES[words]:
        with pytest.raises(ValueError) as raised:
            Sample(messages, [])
        assert words in str(raised.value)
        str(raised.value).encode()


def test_samples_made_in_python_are_checked_and_not_changed_in_place():
    messages = [user("<image>a"), answer("b")]
    before = copy.deepcopy(messages)
    sample = Sample(messages, [Image.new("RGB", (1, 1))])
    assert messages == before
    assert sample.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "a"}]
    with pytest.raises(ValueError, match="1 <image> marks"):
        Sample(messages, [])


def test_only_what_is_not_learned_is_marked():
    first = [user("a") | {"loss": False}, answer("b") | {"loss": False}]
    last = [user("c"), answer("d") | {"loss": True}]
    sample = Sample(first + last, [], answers=["d", "D"])
    assert [message.get("loss") for message in sample.messages] == [None, False, None, None]
    same = Sample([user("a"), first[1], user("c"), answer("d") | {"loss": None}], [])
    assert same.messages == sample.messages
    assert Sample(sample.messages, []).messages == sample.messages
    assert sample.answers == ("d", "D")

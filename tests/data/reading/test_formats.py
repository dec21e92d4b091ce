"""Records as other tools write them, each with what it is to become, written out by hand."""

import base64
import io
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.json_values import JSON_VALUES
from tuninglab.data.reading import formats
from tuninglab.data.reading.formats import (
    FORMATS,
    check_columns,
    check_columns_found,
    format_named,
    format_of,
    samples_of,
)
from tuninglab.data.reading.found import Format, Reading
from tuninglab.errors import UserError

FILE = io.BytesIO()
Image.new("RGB", (4, 3), "red").save(FILE, "PNG")
PNG = FILE.getvalue()
BASE64 = base64.b64encode(PNG).decode()
URL = f"data:image/png;base64,{BASE64}"
IMAGE = {"type": "image"}


def text(value):
    return {"type": "text", "text": value}


def user(*parts):
    return said("user", *parts)


def answer(*parts, **more):
    return said("assistant", *parts) | more


def said(role, *parts):
    return {"role": role, "content": [text(p) if isinstance(p, str) else p for p in parts]}


def turn(who, value, **more):
    return {"from": who, "value": value, **more}


def message(role, content, **more):
    return {"role": role, "content": content, **more}


ASK, SAY = turn("human", "Q?"), turn("gpt", "A.")
USER, ASSISTANT = message("user", "Q?"), message("assistant", "A.")
PLAIN = [user("Q?"), answer("A.")]
SHOWN = [user(IMAGE, "Q?"), answer("A.")]


def asks(*parts):
    return [message("user", list(parts)), ASSISTANT]


# Name -> record, format, its messages and pictures.
GOOD = {
    # The records that are common elsewhere.
    "two pictures": (
        {
            "image": ["a.png", "b.png"],
            "conversations": [turn("human", "<image> or <image>?"), SAY],
        },
        ("conversations", [user(IMAGE, " or ", IMAGE, "?"), answer("A.")], ["a.png", "b.png"]),
    ),
    "image null": (
        {"image": None, "conversations": [ASK, SAY]},
        ("conversations", PLAIN, []),
    ),
    "one answer not learned": (
        {"conversations": [ASK, turn("gpt", "no", loss=False), ASK, SAY]},
        ("conversations", [user("Q?"), answer("no", loss=False), *PLAIN], []),
    ),
    "system beside": (
        {"system": "Be brief.", "conversations": [ASK, SAY]},
        ("conversations", [said("system", "Be brief."), *PLAIN], []),
    ),
    "OpenAI, data URL": (
        {"messages": asks({"type": "image_url", "image_url": {"url": URL}}, text("Q?"))},
        ("messages", SHOWN, [PNG]),
    ),
    "OpenAI, path": (
        {"messages": asks({"type": "image_url", "image_url": "a.png"}, text("Q?"))},
        ("messages", SHOWN, ["a.png"]),
    ),
    "Anthropic": (
        {
            "messages": asks(
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": BASE64},
                },
                {"type": "image", "source": {"type": "url", "url": "b.png"}},
                text("Q?"),
            )
        },
        ("messages", [user(IMAGE, IMAGE, "Q?"), answer("A.")], [PNG, "b.png"]),
    ),
    "Responses": (
        {
            "messages": [
                message(
                    "user",
                    [
                        {"type": "input_image", "image_url": URL, "detail": "low"},
                        {"type": "input_text", "text": "Q?"},
                    ],
                ),
                message("assistant", [{"type": "output_text", "text": "A."}]),
            ]
        },
        ("messages", SHOWN, [PNG]),
    ),
    "images as data URL": (
        {"messages": [message("user", "<image>Q?"), ASSISTANT], "images": [URL]},
        ("messages", SHOWN, [PNG]),
    ),
    "images as base64": (
        {"messages": [message("user", "<image>Q?"), ASSISTANT], "images": [BASE64]},
        ("messages", SHOWN, [PNG]),
    ),
    "images as a struct": (
        {
            "messages": [message("user", "<image><image>Q?"), ASSISTANT],
            "images": [{"bytes": PNG, "path": "x.png"}, {"bytes": None, "path": "a.png"}],
        },
        ("messages", [user(IMAGE, IMAGE, "Q?"), answer("A.")], [PNG, "a.png"]),
    ),
    "a picture without a mark": (
        {"image": "a.png", "conversations": [turn("system", "Be brief."), ASK, SAY]},
        (
            "conversations",
            [said("system", "Be brief."), user(IMAGE, "\nQ?"), answer("A.")],
            ["a.png"],
        ),
    ),
    "an answer first": (
        {"conversations": [turn("gpt", "Hello!"), ASK, SAY]},
        ("conversations", PLAIN, []),
    ),
    "pairs": (
        {"conversation": [{"human": "Q?", "assistant": "A."}, {"human": "B?", "assistant": "C."}]},
        ("conversations", [*PLAIN, user("B?"), answer("C.")], []),
    ),
    "Alpaca": (
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        ("alpaca", [user("Add.\n1 1"), answer("2")], []),
    ),
    "Dolly": (
        {"instruction": "Q?", "context": "", "response": "A.", "category": "open_qa"},
        ("dolly", PLAIN, []),
    ),
    "query and response": (
        {"query": "Q?", "response": "A.", "images": ["a.png", "b.png"]},
        ("query-response", [user(IMAGE, IMAGE, "Q?"), answer("A.")], ["a.png", "b.png"]),
    ),
    "an answer alone": (
        {"messages": [ASSISTANT], "images": ["a.png"]},
        ("messages", [user(IMAGE), answer("A.")], ["a.png"]),
    ),
    "a caption": (
        {"image": "a.png", "text": "A cat."},
        ("captions", [user(IMAGE), answer("A cat.")], ["a.png"]),
    ),
    "a file name": (
        {"file_name": "a.png", "caption": "A cat."},
        ("captions", [user(IMAGE), answer("A cat.")], ["a.png"]),
    ),
    "absolute path": (
        # Whether it may be read is seen when it is looked for under the root.
        {"image": "/data/a.png", "conversations": [turn("human", "<image>\nQ?"), SAY]},
        ("conversations", [user(IMAGE, "\nQ?"), answer("A.")], ["/data/a.png"]),
    ),
    # More of each kind.
    "the mark last": (
        {
            "image": "a.png",
            "conversations": [turn("human", "Q?\n<image>"), SAY, ASK, SAY],
        },
        ("conversations", [user(IMAGE, "\nQ?"), answer("A."), *PLAIN], ["a.png"]),
    ),
    "other roles": (
        {
            "system_prompt": "S",
            "conversation": [message("user", "Q?"), turn("bot", "A."), ASK, SAY],
        },
        ("conversations", [said("system", "S"), *PLAIN, *PLAIN], []),
    ),
    "only a system turn before the greeting": (
        {"conversations": [turn("system", "S"), turn("gpt", "Hi"), ASK, SAY]},
        ("conversations", [said("system", "S"), *PLAIN], []),
    ),
    "a pair that is not learned": (
        {"conversation": [{"human": "Q?", "assistant": "no", "loss": False}, ASK, SAY]},
        ("conversations", [user("Q?"), answer("no", loss=False), *PLAIN], []),
    ),
    "pictures in a conversation's answer alone": (
        {"images": ["a.png", "b.png"], "conversations": [turn("gpt", "<image><image>Both.")]},
        ("conversations", [user(IMAGE, IMAGE), answer("Both.")], ["a.png", "b.png"]),
    ),
    "weights": (
        {
            "messages": [
                USER,
                message("assistant", "no", weight=0),
                USER,
                message("assistant", "no", loss_scale=0.0, loss=False),
                USER,
                message("assistant", "A.", weight=1, loss_scale=1.0, loss=True, train=True),
            ]
        },
        (
            "messages",
            [user("Q?"), answer("no", loss=False), user("Q?"), answer("no", loss=False), *PLAIN],
            [],
        ),
    ),
    "neighbours": (
        {
            "messages": [
                message("developer", "S"),
                message("user", "one"),
                message("user", [text("two"), {"type": "image", "image": "a.png"}]),
                message("user", "three"),
                message("assistant", "A"),
                message("assistant", "B"),
            ]
        },
        (
            "messages",
            [said("system", "S"), user("one\ntwo", IMAGE, "\nthree"), answer("A\nB")],
            ["a.png"],
        ),
    ),
    "parts with nulls of a table": (
        {
            "messages": asks(
                {"type": "image", "path": "a.png", "text": None, "url": None},
                {"type": "text", "text": "Q?", "path": None, "url": None},
            ),
            "images": None,
            "videos": [],
            "tools": None,
        },
        ("messages", SHOWN, ["a.png"]),
    ),
    "an answer beside": (
        {"messages": [message("user", "<image>Q?")], "images": ["a.png"], "answer": "A."},
        ("messages", SHOWN, ["a.png"]),
    ),
    "Anthropic's system": (
        {"system": [text("S")], "messages": [USER, ASSISTANT]},
        ("messages", [said("system", "S"), *PLAIN], []),
    ),
    "Alpaca with all that may stand beside": (
        {
            "system": "S",
            "history": [["Q?", "A."]],
            "instruction": "B?",
            "input": None,
            "output": "C.",
            "image": "a.png",
        },
        (
            "alpaca",
            [said("system", "S"), *SHOWN, user("B?"), answer("C.")],
            ["a.png"],
        ),
    ),
    "a question with its own mark": (
        {"question": "What <image>?", "answer": 7, "image": "a.png"},
        ("query-response", [user("What ", IMAGE, "?"), answer("7")], ["a.png"]),
    ),
    "a caption of two pictures": (
        {"file_names": ["a.png", "b.png"], "text": "Two."},
        ("captions", [user(IMAGE, IMAGE), answer("Two.")], ["a.png", "b.png"]),
    ),
    "a struct from JSON": (
        {"image": {"bytes": BASE64}, "prompt": "Q?", "completion": "A."},
        ("query-response", SHOWN, [PNG]),
    ),
    "nothing asked": (
        {"images": ["a.png"], "query": "", "response": "A.", "history": ""},
        ("query-response", [user(IMAGE), answer("A.")], ["a.png"]),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_records_of_other_tools_become_samples(name):
    record, (format, messages, images) = GOOD[name]
    before = json.dumps(record, default=repr)
    (sample,) = samples_of(record, "here", Reading())
    assert format_of(record).name == format
    assert sample.messages == messages
    assert sample.images == images
    assert sample.origin == "here"
    assert json.dumps(record, default=repr) == before


# Words of the message -> records that are refused so.
BAD = {
    "of 0; expected an object": [[]],
    '"videos", but videos cannot be read': [
        {"conversations": [ASK, SAY], "videos": [["a.mp4"]]},
        {"messages": [USER, ASSISTANT], "videos": ["a.mp4"]},
    ],
    '"video", but videos': [{"conversations": [turn("human", "<image>Q"), SAY], "video": "a.mp4"}],
    '"audios", but sound': [{"query": "Q", "response": "A", "audios": ["a.wav"]}],
    '"audio", but sound': [{"image": "a", "text": "b", "audio": {"bytes": "x"}}],
    '"tools", but calls': [{"messages": [USER, ASSISTANT], "tools": "[{}]"}],
    '"objects", but places': [{"query": "Q", "response": "A", "objects": {"ref": ["x"]}}],
    '"rejected_response", but learning from comparisons': [
        {"query": "Q", "response": "A", "rejected_response": "B"}
    ],
    '"rejected", but': [{"conversations": [ASK, SAY], "rejected": SAY}],
    '"chosen", but': [{"messages": [USER, ASSISTANT], "chosen": SAY}],
    '"label" true or false': [{"messages": [USER, ASSISTANT], "label": False}],
    '"weight" 0.5, but': [{"instruction": "Q", "output": "A", "weight": 0.5}],
    '"loss" False, but': [{"instruction": "Q", "response": "A", "loss": False}],
    '"loss_scale" ': [{"messages": [USER, ASSISTANT], "loss_scale": "last_round"}],
    # Turns.
    "message 2: the role is 'tool': calls of tools": [
        {"messages": [USER, message("tool", "5"), ASSISTANT]}
    ],
    "message 2: the role is 'function_call'": [
        {"conversations": [ASK, turn("function_call", "f()"), turn("observation", "1"), SAY]}
    ],
    'message 2: "tool_calls" cannot be learned': [
        {"messages": [USER, message("assistant", None, tool_calls=[{"id": "1"}])]}
    ],
    'message 2: "reasoning_content"': [
        {"messages": [USER, message("assistant", "A", reasoning_content="hm")]}
    ],
    'message 1: "images"': [{"messages": [message("user", "Q", images=["a"]), ASSISTANT]}],
    "message 2: the content is null": [{"messages": [USER, message("assistant", None)]}],
    "message 2 is 'A'; expected an object": [{"conversations": [ASK, "A"]}],
    "message 1: the content is missing": [{"conversation": [{"from": "human"}, SAY]}],
    "message 1: the content is 5": [{"conversation": [{"human": 5, "assistant": "A"}]}],
    "the dialogue is empty": [{"messages": []}, {"conversation": []}],
    "the dialogue is 'Q'": [{"messages": "Q"}],
    "of type 'tool_use', which": [
        {"messages": [USER, message("assistant", [{"type": "tool_use", "id": "1"}])]}
    ],
    "of type 'tool_result'": [{"messages": asks({"type": "tool_result", "content": "x"})}],
    "of type 'document'": [{"messages": asks({"type": "document", "source": {}})}],
    "of type 'thinking'": [
        {"messages": [USER, message("assistant", [{"type": "thinking", "thinking": "hm"}])]}
    ],
    "of type 'video_url'": [{"messages": asks({"type": "video_url"})}],
    "a part is unknown (type 'cat')": [{"messages": asks({"type": "cat"})}],
    "a part is unknown (type a list of 1)": [{"messages": asks({"type": ["image"]})}],
    "the text of a part is missing": [{"messages": asks({"type": "input_text"})}],
    '"file_id" of a service': [{"messages": asks({"type": "input_image", "file_id": "f-1"})}],
    "\"source\" of an image part is of type 'file'": [
        {"messages": asks({"type": "image", "source": {"type": "file", "file_id": "f"}})}
    ],
    "named by missing": [{"messages": asks({"type": "image_url", "image_url": {"detail": "low"}})}],
    "is a URL; download it first": [
        {"messages": asks({"type": "image_url", "image_url": {"url": "https://e.org/a.png"}})},
        {"image": "HTTP://e.org/a.png", "text": "A"},
        {"messages": asks({"type": "image", "source": {"type": "url", "url": "http://e.org"}})},
    ],
    "data: URL without base64": [
        {"image": "data:image/svg+xml,<svg/>", "text": "A"},
        {"image": "data:image/png;base64", "text": "A"},
    ],
    "which is not base64": [{"image": "data:image/png;base64,a", "text": "A"}],
    # Learned or not.
    '"loss" is 2; a turn is learned': [{"messages": [USER, message("assistant", "A", loss=2)]}],
    '"weight" is 0.5': [{"messages": [USER, message("assistant", "A", weight=0.5)]}],
    "\"loss_scale\" is '1'": [{"messages": [USER, message("assistant", "A", loss_scale="1")]}],
    "loss and weight contradict": [
        {"messages": [USER, message("assistant", "A", loss=True, weight=0)]}
    ],
    'message 1: "weight" is 1, but only answers are learned': [
        {"messages": [message("user", "Q", weight=1), ASSISTANT]}
    ],
    "no answer is learned": [{"conversations": [ASK, turn("gpt", "A", loss=False)]}],
    "one is learned and the other is not": [
        {"messages": [USER, message("assistant", "A", loss=False), ASSISTANT]}
    ],
    # Dialogues.
    'both "messages" and "conversations"': [
        {"messages": [USER, ASSISTANT], "conversations": [ASK, SAY]},
        {"messages": [USER, ASSISTANT], "conversation": []},
    ],
    '"system" and the first message both': [
        {"system": "S", "conversations": [turn("system", "S"), ASK, SAY]}
    ],
    'both "system" and "system_prompt"': [
        {"system": "S", "system_prompt": "S", "messages": [USER, ASSISTANT]}
    ],
    '"system": the content is 5': [{"system": 5, "messages": [USER, ASSISTANT]}],
    'both "conversations" and "conversation"': [
        {"conversations": [ASK, SAY], "conversation": [ASK, SAY]}
    ],
    "message 2 (user) follows another user": [{"conversations": [ASK, ASK, SAY]}],
    "message 1 (assistant) stands first": [{"messages": [ASSISTANT, USER, ASSISTANT]}],
    "message 2: the answer is empty; write one or drop the turn (neighbours": [
        {"messages": [USER, USER, message("assistant", " ")]}
    ],
    "an answer without question or picture": [
        {"messages": [ASSISTANT]},
        {"conversations": [SAY]},
    ],
    "there is no answer": [
        {"messages": [USER]},
        {"messages": [USER], "answers": []},
        {"conversations": [ASK]},
    ],
    "0 <image> marks in the messages but 2 images": [
        {"image": ["a", "b"], "conversations": [ASK, SAY]}
    ],
    "0 <image> marks in the messages but 1 images": [{"image": "a", "messages": [USER, ASSISTANT]}],
    "1 <image> marks in the messages but 0 images": [
        {"query": "<image>Q", "response": "A"},
        {"conversations": [turn("human", "Q<image>"), SAY]},
    ],
    '"id" is a list of 1': [{"messages": [USER, ASSISTANT], "id": [1]}],
    '"kind" is True': [{"messages": [USER, ASSISTANT], "kind": True}],
    "an answer is True": [{"question": "Q", "answer": True}],
    # Single turns.
    "the answer is empty": [
        {"question": "Q", "answers": ["", " "]},
        {"question": "Q", "answers": []},
    ],
    '"output" is empty': [
        {"instruction": "Q", "output": None},
        {"instruction": "Q", "input": "x", "output": ""},
    ],
    '"instruction" is empty': [{"instruction": "", "output": "A"}],
    '"answer" is empty': [{"question": "Q", "answer": None}],
    '"input" is 5': [{"instruction": "Q", "input": 5, "output": "A"}],
    "input and context may each be the input": [
        {"instruction": "Q", "input": "a", "context": "b", "response": "A"}
    ],
    "output and response may each be": [{"instruction": "Q", "output": "A", "response": "B"}],
    "--columns response=answer": [{"problem": "Q", "solution": "long", "answer": "1"}],
    "--columns query=prompt": [{"prompt": "Q", "question": "P", "answer": "1"}],
    '"prompt" is a list of 1': [{"prompt": [USER], "completion": "A"}],
    "an answer is an object of 2": [{"prompt": [USER], "completion": [ASSISTANT]}],
    "the question is empty": [{"query": "", "response": "A"}],
    '"history" holds a list of 1': [{"query": "Q", "response": "A", "history": [["Q"]]}],
    '"history" holds 5': [{"instruction": "Q", "output": "A", "history": 5}],
    'has "choices", which this format does not read': [
        {"query": "Q", "response": "A", "choices": ["A", "B"]}
    ],
    "the list of captions is empty": [{"image": "a", "captions": []}],
    "the list of pictures is empty": [{"image": [], "caption": "A"}],
    "caption and text may each be the caption": [{"image": "a", "text": "A", "caption": "B"}],
    'both "image" and "file_name"': [{"image": "a", "file_name": "b", "text": "A"}],
    "message 2: the answer is empty": [{"image": "a", "captions": ["A", ""]}],
    "half of a surrogate pair": [
        {"image": "\ud800", "text": "A"},
        {"query": "\ud800", "response": "A"},
        {"messages": [USER, ASSISTANT], "id": "\ud800"},
    ],
}


@pytest.mark.parametrize("words", BAD)
def test_what_is_not_understood_is_refused_by_name(words):
    for record in BAD[words]:
        reading = Reading()
        with pytest.raises(ValueError) as raised:
            samples_of(record, "here", reading)
        assert words in str(raised.value)
        str(raised.value).encode()
        # Only what was done to samples is counted.
        assert not reading.notes


def notes_of(name, **reading):
    reading = Reading(**reading)
    samples_of(GOOD[name][0], "here", reading)
    return [(words.split(" ")[1], count) for words, count in reading.notes.items()]


def test_what_changes_what_is_learned_is_counted():
    # By the second word of each note.
    assert notes_of("two pictures") == []
    assert notes_of("absolute path") == []  # its mark is in front
    assert notes_of("the mark last") == [("moved", 1)]
    assert notes_of("a picture without a mark") == [("picture", 1)]
    assert notes_of("an answer first") == [("answer", 1)]
    assert notes_of("neighbours") == [("messages", 1)]
    reading = Reading()
    for _ in range(3):
        samples_of(GOOD["the mark last"][0], "here", reading)
    assert list(reading.notes.values()) == [3]


def test_marks_stay_where_they_are_if_asked_to():
    record, _ = GOOD["the mark last"]
    reading = Reading(keep_marks=True)
    (sample,) = samples_of(record, "here", reading)
    assert sample.messages[0] == user("Q?\n", IMAGE)
    assert reading.notes == Counter()
    # In front already, nothing is added.
    record = {"image": "a", "conversations": [turn("human", " <image>Q?"), SAY]}
    (sample,) = samples_of(record, "", Reading())
    assert sample.messages[0] == user(" ", IMAGE, "Q?")
    # Of several marks each has its place, and in `messages` each has.
    two, asked = turn("human", "This <image> or that <image>?"), "Q? <image>"
    (sample,) = samples_of({"image": ["a", "b"], "conversations": [two, SAY]}, "", Reading())
    assert sample.messages[0] == user("This ", IMAGE, " or that ", IMAGE, "?")
    record = {"messages": [message("user", asked), ASSISTANT], "images": ["a"]}
    (sample,) = samples_of(record, "", Reading())
    assert sample.messages[0] == user("Q? ", IMAGE)


def test_several_answers():
    record = {"question": "Q?", "answers": ["b", "a", "b", "a", ""], "question_id": 7, "id": 8}
    (sample,) = samples_of(record, "", Reading())
    assert sample.messages[-1] == answer("b")  # of equals the first
    assert sample.answers == ("b", "a", "b", "a", "")
    assert sample.id == 7
    of_vqa = {"question": "Q?", "answers": [{"answer": w, "answer_id": 1} for w in "xyy"]}
    (sample,) = samples_of(of_vqa, "", Reading())
    assert sample.messages[-1] == answer("y")
    both = {"question": "Q?", "answer": "a", "answers": ["b", "b", "a"], "kind": "colour"}
    (sample,) = samples_of(both, "", Reading())
    assert (sample.messages[-1], sample.answers) == (answer("a"), ("b", "b", "a"))
    assert sample.kind == "colour"
    (sample,) = samples_of({"messages": [USER], "answers": ["a", "b", "b"]}, "", Reading())
    assert (sample.messages[-1], sample.answers) == (answer("b"), ("a", "b", "b"))


def test_each_caption_is_a_sample():
    record = {"image": "a.png", "caption": ["One.", "Two."], "id": "x"}
    one, two = samples_of(record, "here", Reading())
    assert one.messages == [user(IMAGE), answer("One.")]
    assert two.messages == [user(IMAGE), answer("Two.")]
    for sample in (one, two):
        assert sample.images == ["a.png"] and sample.id == "x"
        assert sample.answers == ("One.", "Two.")


RESPONSES = "response answer output target targets answer_key answers solution text"
RESPONSES += " completion content"


@pytest.mark.parametrize("query", "query prompt input instruction question problem".split())
@pytest.mark.parametrize("response", RESPONSES.split())
def test_the_usual_names_of_questions_and_answers(query, response):
    record = {query: "Q?", response: "A."}
    (sample,) = samples_of(record, "", Reading())
    assert sample.messages == PLAIN
    # Null in an export where a record has no such value.
    record = {"query": None, "response": None, "image": None} | record
    assert samples_of(record, "", Reading())[0].messages == PLAIN


def test_names_and_kinds_are_kept():
    record = {"instruction": "Q?", "response": "A.", "category": "open_qa", "id": 12}
    (sample,) = samples_of(record, "", Reading())
    assert (sample.kind, sample.id) == ("open_qa", 12)
    record = {"conversations": [ASK, SAY], "id": "0012", "kind": "detail", "answers": ["A.", "B"]}
    (sample,) = samples_of(record, "", Reading())
    assert (sample.kind, sample.id, sample.answers) == ("detail", "0012", ("A.", "B"))


def test_columns_say_what_keys_hold():
    reading = Reading(columns={"query": "Q", "response": "answer", "images": "pics"})
    record = {"Q": "Q?", "problem": "other", "solution": "long", "answer": "A.", "pics": ["a"]}
    (sample,) = samples_of(record, "", reading)
    assert (sample.messages, sample.images) == (SHOWN, ["a"])
    check_columns(reading.columns)
    check_columns_found(reading)
    # What had the name before is not what is meant.
    reading = Reading(columns={"response": "A", "query": "nothing"})
    (sample,) = samples_of({"query": "Q?", "response": "x", "A": "A."}, "", reading)
    assert sample.messages == PLAIN
    with pytest.raises(UserError, match="--columns query=nothing: no record has a key 'nothing'"):
        check_columns_found(reading)
    with pytest.raises(UserError, match="qurey=Q: no format has a key 'qurey'; nearest: query, "):
        check_columns({"qurey": "Q"})


def test_a_format_that_is_named_is_used_whatever_the_keys():
    record = {"messages": [USER, ASSISTANT], "image": "a.png", "text": "A cat."}
    (sample,) = samples_of(record, "", Reading(), format_named("captions"))
    assert sample.messages == [user(IMAGE), answer("A cat.")]
    for format in FORMATS:
        assert format_named(format.name) is format
        with pytest.raises(ValueError):
            samples_of({}, "", Reading(), format)
    with pytest.raises(UserError, match="'conversation': .* nearest: conversations, "):
        format_named("conversation")


def test_a_format_may_be_looked_for_by_what_it_is_for():
    for name, found in (
        ("llava", "conversations"),
        ("OpenAI", "messages"),
        ("ai2d_row", "ai2d_rows"),
    ):
        with pytest.raises(UserError, match=f"nearest: {found}, .*others: .*documents: .*karpathy"):
            format_named(name)


def test_the_nearest_formats_have_a_key_of_the_record():
    with pytest.raises(ValueError, match=r"nearest: captions \(image, caption\); "):
        format_of({"image": "a.png", "label": "red"})


def test_an_unknown_record_is_told_its_keys_and_the_nearest_formats():
    with pytest.raises(ValueError) as raised:
        format_of({"Message": [], "imag": 1, "capton": 2})
    said = str(raised.value)
    assert said.startswith("no known format has the keys 'Message', 'imag', 'capton'; nearest: ")
    nearest = said.partition("nearest: ")[2].partition(" (--format")[0].split("; ")
    assert len(nearest) == 3
    assert set(nearest[:2]) == {"captions (image, caption)", "messages (messages)"}
    with pytest.raises(ValueError, match=r"the keys \(none\); nearest: "):
        format_of({})
    with pytest.raises(ValueError) as raised:
        format_of({"\x1b" * 1000 + str(k): k for k in range(5000)})
    assert len(str(raised.value)) < 6000 and "and 4970 more" in str(raised.value)


def test_formats_of_sets_have_their_turn_before_questions(monkeypatch):
    mine = Format("mine", "", lambda record: "choices" in record, lambda *_: [], ("choices",))
    monkeypatch.setattr(formats, "FORMATS", (mine, *FORMATS))
    assert format_of({"question": "Q", "answer": 1, "choices": []}) is mine


KEYS = st.sampled_from(
    "messages conversations conversation role content from value type text image images path url "
    "bytes source data image_url human assistant loss weight system history instruction input "
    "output query response answers caption file_name id kind".split()
)
WORDS = st.sampled_from(["user", "human", "gpt", "assistant", "system", "<image>", "a", "image"])
RECORDS = st.dictionaries(
    KEYS,
    st.recursive(
        JSON_VALUES | WORDS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
        max_leaves=20,
    ),
    max_size=5,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(record=RECORDS, format=st.sampled_from([None, *FORMATS]))
def test_any_record_gives_samples_or_a_reason(record, format):
    try:
        assert samples_of(record, "here", Reading(), format)
    except ValueError as error:
        str(error).encode()
        assert len(str(error)) < 3000


def test_any_record_may_say_its_group_and_what_its_answer_is_chosen_from():
    record = {"image": "a.png", "question": "Is it red?", "answer": "yes"}
    told = record | {"group": "drawings", "candidates": ["yes", "no"]}
    (found,) = samples_of(told, "here", Reading())
    assert (found.group, found.options) == ("drawings", ("yes", "no"))
    (plain,) = samples_of(record, "here", Reading())
    assert (plain.group, plain.options) == (None, ())


@pytest.mark.parametrize("wrong", ["yes", ["yes"], ["yes", "yes"], [], [{}]])
def test_candidates_are_two_different_texts_or_more(wrong):
    record = {"image": "a.png", "question": "Is it red?", "answer": "yes", "candidates": wrong}
    with pytest.raises(ValueError, match="expected a (list of two different )?text"):
        samples_of(record, "here", Reading())


def test_a_question_without_an_answer_is_told_as_that():
    with pytest.raises(ValueError, match="a question and no answer; .* --columns response=KEY"):
        samples_of({"image": "a.png", "question": "Is it red?", "id": 3}, "here", Reading())

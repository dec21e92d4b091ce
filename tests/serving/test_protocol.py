"""Requests as clients write them: what is honoured, what is ignored, what is refused, by name."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from tests.json_values import FORTY, JSON_VALUES
from tests.serving.bodies import Wire, data_url, image_url, picture
from tuninglab.serving.exchange import Sampling
from tuninglab.serving.protocol import ApiError, ChatRequest, read_chat_request

MODELS = ("tuned", "other", "base")
ASKED: Any = [{"role": "user", "content": "What is it?"}]
RED, BLUE = picture(), picture("JPEG", "blue")


def turn(role, content):
    return {"role": role, "content": content}


def read(**fields) -> ChatRequest:
    return read_chat_request(json.dumps({"messages": ASKED} | fields).encode(), MODELS)


def first(**fields):
    return read(**fields).requests[0]


def refusal(body: bytes | None = None, **fields) -> ApiError:
    body = json.dumps({"messages": ASKED} | fields).encode() if body is None else body
    with pytest.raises(ApiError) as caught:
        read_chat_request(body, MODELS)
    error = caught.value
    assert error.body["error"] == {
        "message": error.message,
        "type": "invalid_request_error",
        "param": error.param,
        "code": error.code,
    }
    return error


def test_openais_client_asks_with_all_that_is_honoured():
    wire, question = Wire(), [image_url(data_url(RED)), {"type": "text", "text": "A?"}]
    dialogue: Any = [turn("developer", "Be brief."), turn("user", question)]
    wire.openai().chat.completions.create(
        model="other",
        messages=dialogue,
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        stop=["\n", "."],
        n=2,
        seed=41,
        logprobs=True,
        top_logprobs=3,
        frequency_penalty=0.1,
        presence_penalty=-0.2,
        user="somebody",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        reasoning_effort="low",
        parallel_tool_calls=False,
        response_format={"type": "text"},
        extra_body={"top_k": 5, "repetition_penalty": 1.1, "never_heard_of": {"x": [1]}},
    )
    chat = read_chat_request(wire.bodies[0], MODELS)
    assert (chat.model, chat.stream, chat.asks_logprobs) == ("other", False, True)
    one, two = chat.requests
    assert one.sampling == Sampling(0.5, 0.9, 5, 1.1, 0.1, -0.2, 41)
    assert two.sampling == Sampling(0.5, 0.9, 5, 1.1, 0.1, -0.2, 42)
    system = turn("system", [{"type": "text", "text": "Be brief."}])
    asked = turn("user", [{"type": "image"}, {"type": "text", "text": "A?"}])
    assert one.messages == two.messages == [system, asked]
    assert one.pictures == two.pictures == (RED,)
    assert (one.max_new_tokens, one.stop, one.logprobs) == (7, ("\n", "."), 3)
    assert one.model == two.model == "other"


def test_openais_client_asks_for_a_stream():
    wire = Wire(b"data: [DONE]\n\n", "text/event-stream")
    wire.openai().chat.completions.create(
        model="base", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    chat = read_chat_request(wire.bodies[0], MODELS)
    assert (chat.model, chat.stream, chat.include_usage) == ("base", True, True)
    assert not read(stream=False, stream_options={"include_usage": True}).include_usage


def test_langchain_asks():
    wire = Wire()
    question = HumanMessage([{"type": "text", "text": "A?"}, image_url(data_url(BLUE))])
    dialogue = [SystemMessage("Be brief."), HumanMessage("Hello"), AIMessage("Yes?"), question]
    wire.langchain(max_tokens=9, temperature=0.3, stop=["x"]).invoke(dialogue)
    request = read_chat_request(wire.bodies[0], MODELS).requests[0]
    roles = [message["role"] for message in request.messages]
    assert roles == ["system", "user", "assistant", "user"]
    assert request.pictures == (BLUE,)
    assert (request.max_new_tokens, request.stop) == (9, ("x",))
    assert request.sampling.temperature == 0.3


def test_what_is_not_said_is_as_chat_and_evaluate_answer():
    chat = read()
    assert (chat.model, chat.stream, chat.include_usage, chat.asks_logprobs) == (
        *("tuned", False, False, False),
    )
    (request,) = chat.requests
    assert request.sampling == Sampling()
    assert (request.max_new_tokens, request.stop, request.logprobs) == (None, (), None)


NULLS = ("model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "stream")
NULLS += ("stream_options", "seed", "n", "logprobs", "top_logprobs", "frequency_penalty", "top_k")
NULLS += ("presence_penalty", "repetition_penalty", "tools", "tool_choice", "response_format")
NULLS += ("functions", "function_call", "audio", "modalities", "user", "logit_bias")


def test_null_is_as_not_said():
    assert read(**dict.fromkeys(NULLS)) == read()


@pytest.mark.parametrize(
    "ignored",
    [
        {"user": 3},
        {"metadata": []},
        {"store": True},
        {"parallel_tool_calls": True},
        {"service_tier": "flex"},
        {"reasoning_effort": "high"},
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"tool_choice": "none"},
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"modalities": ["text"]},
        {"min_p": 0.1, "anything": {"at": ["all"]}},
    ],
)
def test_what_changes_no_answer_is_ignored(ignored):
    assert read(**ignored) == read()


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 7, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 1}, 1),
    ],
)
def test_the_longest_answer_has_two_names(said, meant):
    assert first(**said).max_new_tokens == meant


@pytest.mark.parametrize(
    ("stop", "meant"),
    [("x", ("x",)), (["x"], ("x",)), ([], ()), (["a", "b", "c", " "], ("a", "b", "c", " "))],
)
def test_stops_are_a_text_or_some(stop, meant):
    assert first(stop=stop).stop == meant


def test_bounds_belong_to_what_is_taken():
    low = first(temperature=0, top_p=1e-9, frequency_penalty=-2, presence_penalty=-2, top_k=0)
    high = first(temperature=2, top_p=1, frequency_penalty=2, presence_penalty=2, top_k=10**6)
    assert (low.sampling.temperature, low.sampling.top_p) == (0, 1e-9)
    assert high.sampling == Sampling(2.0, 1.0, 10**6, 1.0, 2.0, 2.0)
    # transformers takes 1.0 for these, and refuses 1.
    assert all(isinstance(x, float) for x in (high.sampling.temperature, high.sampling.top_p))
    assert first(repetition_penalty=10).sampling.repetition_penalty == 10.0


def test_a_temperature_that_would_overflow_is_none():
    """exp(logit / 1e-300) is not finite, and one such row would end all that run beside it."""
    assert first(temperature=1e-300).sampling.temperature == 0
    least = first(temperature=1e-3, repetition_penalty=0.01).sampling
    scores = torch.tensor([-1e4, 1e4]) / least.repetition_penalty / least.temperature
    assert scores.softmax(-1).isfinite().all()


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1])
def test_any_seed_that_is_taken_can_be_drawn_with(seed):
    for request in read(seed=seed, n=4).requests:
        assert request.sampling.seed is not None
        torch.Generator().manual_seed(request.sampling.seed)


def test_answers_without_a_seed_are_drawn_apart():
    chat = read(n=4, temperature=1)
    assert [request.sampling.seed for request in chat.requests] == [None] * 4


@pytest.mark.parametrize(("said", "meant"), [({}, 0), ({"top_logprobs": 20}, 20)])
def test_tokens_are_told_with_as_many_others_as_asked_for(said, meant):
    assert first(logprobs=True, **said).logprobs == meant
    assert first(logprobs=False).logprobs is None


WRONG = [
    *[("model", value) for value in (1, True, [], {})],
    *[(name, value) for name in ("max_tokens", "max_completion_tokens") for value in (0, -1)],
    *[("max_tokens", value) for value in (1.5, 1.0, "7", True, [], 10**30)],
    *[("temperature", value) for value in (-0.1, 2.1, "1", True, [], 10**400)],
    *[("top_p", value) for value in (0, 0.0, -1, 1.01, "1", False)],
    *[("stop", value) for value in ("", [""], [1], 1, {}, ["a"] * 5, ["a", None], True, "\ud800")],
    *[("n", value) for value in (0, 5, -1, 1.0, "2", True)],
    *[("seed", value) for value in (1.0, "1", True, 2**63, -(2**63) - 1)],
    *[("logprobs", value) for value in (1, 0, "true", [])],
    *[
        (name, v)
        for name in ("frequency_penalty", "presence_penalty")
        for v in (-2.1, 3, "0", True)
    ],
    *[("top_k", value) for value in (-1, 1.0, "1", True, 2**31)],
    *[("repetition_penalty", value) for value in (0, -1, 10.1, 1e-300, "1", True)],
    *[("stream", value) for value in (1, "true", {})],
    *[("stream_options", value) for value in (True, [], "x", 0)],
    *[("tools", value) for value in ([{"type": "function"}], {}, "x")],
    *[("tool_choice", value) for value in ("auto", "required", {"type": "function"})],
    ("functions", [{"name": "f"}]),
    ("function_call", {"name": "f"}),
    *[("response_format", value) for value in ({"type": "json_object"}, {"type": 1}, "json", [])],
    ("response_format", {"json_schema": {}}),
    ("audio", {"voice": "alloy"}),
    *[("modalities", value) for value in (["text", "audio"], "text", 1)],
    *[("messages", value) for value in (None, [], {}, "hello", 1)],
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_what_cannot_be_honoured_is_refused_by_name(name, value):
    error = refusal(**{name: value})
    assert (error.status, error.param, error.code) == (400, name, None)
    assert name in error.message


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"n": 2, "stream": True}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 1.0}, "top_logprobs"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"tools": [{"type": "function"}], "tool_choice": "auto"}, "tools"),
    ],
)
def test_what_contradicts_itself_is_refused(said, param):
    error = refusal(**said)
    assert (error.status, error.param) == (400, param)


def test_a_model_that_is_not_served_is_404():
    error = refusal(model="gpt-4o\x1b[31m")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert "tuned, other, base" in error.message and "\x1b" not in error.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nothing",
        b"[]",
        b"null",
        b'"text"',
        b"1",
        b"\xff\xfe{}",
        json.dumps({"messages": ASKED}).encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b'{"seed": NaN}',
        b'{"x": Infinity}',
        b'{"x": -Infinity}',
        b'{"x": 1' + b"0" * 5000 + b"}",
        b'{"a": 1} {"b": 2}',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"x": ' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"x":' * 900 + b"1" + b"}" * 900,
        b'{"x": [' + b"[]," * 300_000 + b"[]]}",
        b'{"x": [' + b"0," * 300_000 + b"0]}",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_json_object_is_refused(body):
    error = refusal(body)
    assert (error.status, error.param) == (400, None)
    assert "body" in error.message and len(error.message) < 200


def test_numbers_beyond_all_bounds_are_refused():
    error = refusal(b'{"messages": [], "temperature": 1e999}')
    assert error.param == "temperature"


def test_json_may_nest_as_deep_as_files_may():
    value: object = 1
    for _ in range(90):
        value = [value]
    assert read(unknown=value) == read()


FIELDS = st.sampled_from(sorted({name for name, _ in WRONG} | {"top_logprobs", "metadata"}))
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "human"])
KINDS = ["text", "input_text", "image_url", "image", "input_image", "refusal", "x"]
KEYS = ["text", "image_url", "source", "url", "base64", "path", "image", "file_id", "bytes", "data"]
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS) | JSON_VALUES},
    optional={
        key: JSON_VALUES
        | st.fixed_dictionaries({"url": JSON_VALUES})
        | st.just(data_url(RED))
        | st.fixed_dictionaries({"type": st.just("base64"), "data": JSON_VALUES})
        for key in KEYS
    },
)
MESSAGE = st.fixed_dictionaries(
    {"role": ROLES | JSON_VALUES, "content": st.text(max_size=9) | st.lists(PART, max_size=3)},
    optional={"tool_calls": JSON_VALUES, "name": JSON_VALUES, "loss": JSON_VALUES},
)
BODIES = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE | JSON_VALUES, max_size=4)}
) | st.builds(
    lambda fields, messages: {"messages": messages} | fields,
    st.dictionaries(FIELDS, JSON_VALUES | st.integers(0, 5), max_size=3),
    st.just(ASKED) | JSON_VALUES,
)


@FORTY
@given(JSON_VALUES | BODIES)
def test_any_json_is_a_request_or_an_error(value):
    answered(json.dumps(value).encode())


@FORTY
@given(st.lists(BODIES, min_size=10, max_size=10))
def test_any_body_near_a_request_is_one_or_an_error(values):
    for value in values:
        answered(json.dumps(value).encode())


@FORTY
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_a_request_or_an_error(body):
    answered(body)


def answered(body):
    try:
        chat = read_chat_request(body, MODELS)
    except ApiError as error:
        assert error.status in (400, 404)
        # It is sent as JSON, whatever was quoted.
        assert json.loads(json.dumps(error.body, allow_nan=False))
    else:
        for request in chat.requests:
            assert request.messages[-1]["role"] == "user"
            assert all(isinstance(file, bytes) for file in request.pictures)

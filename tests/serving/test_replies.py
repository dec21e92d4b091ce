"""Replies against openai-python's own types, and as its clients read them."""

import json
import math

import openai
import pytest
from langchain_core.messages import AIMessageChunk
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from tests.serving.bodies import Wire
from tuninglab.errors import UserError
from tuninglab.serving.errors_json import SERVER_ERROR
from tuninglab.serving.exchange import (
    BusyError,
    Candidate,
    ClosedError,
    Done,
    Failed,
    Request,
    Text,
    Token,
)
from tuninglab.serving.protocol import ApiError, ChatRequest
from tuninglab.serving.reading import LongPromptError
from tuninglab.serving.replies import (
    END_OF_STREAM,
    Chunks,
    Ids,
    api_error,
    completion,
    model_entry,
    models_list,
    new_ids,
    sse,
)

ASKED = Request("tuned", [{"role": "user", "content": [{"type": "text", "text": "A?"}]}])
IDS = Ids("chatcmpl-1", 1_700_000_000)
OTHER = Candidate("é", "é".encode(), -1.5)
TOKENS = (Token("Ja", b"Ja", -0.25, (Candidate("Ja", b"Ja", -0.25), OTHER)), Token("!", b"!", -2.0))
DONE = Done("stop", prompt_tokens=11, answer_tokens=3, reused_tokens=4)
TOLD = [Text("Ja", TOKENS[:1]), Text("!", TOKENS[1:]), DONE]
PLAIN = [Text("Nein, "), Text("\u2028\n“nie”"), Done("length", 11, 5, 4)]


def chat(answers=1, **options) -> ChatRequest:
    return ChatRequest("tuned", (ASKED,) * answers, **options)


def checked(kind, value):
    """A value as its type, strictly, after a look that it has no field that OpenAI does not know.

    It goes through JSON, as over a wire.
    """
    parsed = kind.model_validate_json(json.dumps(value, allow_nan=False), strict=True)
    assert_known(parsed)
    return parsed


def assert_known(value):
    if isinstance(value, BaseModel):
        assert not value.model_extra, value
        for name in type(value).model_fields:
            assert_known(getattr(value, name))
    for one in value if isinstance(value, list) else ():
        assert_known(one)


def test_the_checks_would_see_another_field():
    reply = completion(chat(), IDS, [PLAIN])
    reply["choices"][0]["message"]["strange"] = 1
    with pytest.raises(AssertionError):
        checked(ChatCompletion, reply)


def test_a_whole_reply():
    reply = checked(ChatCompletion, completion(chat(), IDS, [PLAIN]))
    assert (reply.id, reply.created, reply.model) == (*IDS, "tuned")
    (choice,) = reply.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (choice.message.role, choice.message.content) == ("assistant", "Nein, \u2028\n“nie”")
    assert reply.usage and reply.usage.prompt_tokens_details
    counts = reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens
    assert (*counts, reply.usage.prompt_tokens_details.cached_tokens) == (11, 5, 16, 4)


def test_several_answers_to_one_prompt():
    reply = checked(ChatCompletion, completion(chat(2), IDS, [TOLD, PLAIN]))
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert [choice.message.content for choice in reply.choices] == ["Ja!", "Nein, \u2028\n“nie”"]
    assert [choice.finish_reason for choice in reply.choices] == ["stop", "length"]
    # The prompt is counted once.
    assert reply.usage and reply.usage.prompt_tokens == 11
    assert (reply.usage.completion_tokens, reply.usage.total_tokens) == (8, 19)


def test_an_empty_answer_is_a_text():
    (choice,) = completion(chat(), IDS, [[DONE]])["choices"]
    assert choice["message"] == {"role": "assistant", "content": "", "refusal": None}


def test_tokens_are_told_where_they_were_asked_for():
    (choice,) = checked(ChatCompletion, completion(chat(asks_logprobs=True), IDS, [TOLD])).choices
    assert choice.logprobs and choice.logprobs.content and choice.logprobs.refusal is None
    one, two = choice.logprobs.content
    assert (one.token, one.bytes, one.logprob) == ("Ja", [74, 97], -0.25)
    assert [(top.token, top.bytes) for top in one.top_logprobs] == [
        ("Ja", [74, 97]),
        ("é", [195, 169]),
    ]
    assert (two.token, two.top_logprobs) == ("!", [])
    (silent,) = completion(chat(), IDS, [TOLD])["choices"]
    assert silent["logprobs"] is None


def test_what_could_not_come_is_told_in_json():
    told = [Text("a", (Token("a", b"a", 0.0, (Candidate("b", b"b", -math.inf),)),)), DONE]
    reply = checked(ChatCompletion, completion(chat(asks_logprobs=True), IDS, [told]))
    content = reply.choices[0].logprobs
    assert content and content.content and content.content[0].top_logprobs[0].logprob == -9999


def stream(chat_request, told):
    """All of a stream, as bytes and as its chunks."""
    chunks = Chunks(chat_request, *IDS)
    parts = [chunks.first()]
    for event in told:
        parts += chunks.done(event) if isinstance(event, Done) else [chunks.text(event)]
    return b"".join([*map(sse, parts), sse(END_OF_STREAM)]), parts


def test_a_stream_is_who_speaks_then_text_then_why_it_ended():
    _, parts = stream(chat(stream=True), PLAIN)
    for part in parts:
        checked(ChatCompletionChunk, part)
        assert part.keys() == {"id", "object", "created", "model", "choices"}
    assert [part["choices"][0]["delta"] for part in parts] == [
        {"role": "assistant", "content": ""},
        {"content": "Nein, "},
        {"content": "\u2028\n“nie”"},
        {},
    ]
    reasons = [part["choices"][0]["finish_reason"] for part in parts]
    assert reasons == [None, None, None, "length"]
    assert {(part["id"], part["created"], part["model"]) for part in parts} == {(*IDS, "tuned")}


def test_a_stream_ends_with_counts_where_they_were_asked_for():
    _, parts = stream(chat(stream=True, include_usage=True), PLAIN)
    for part in parts:
        checked(ChatCompletionChunk, part)
    assert [part["usage"] for part in parts[:-1]] == [None] * 4
    assert parts[-1]["choices"] == []
    whole = completion(chat(), IDS, [PLAIN])
    assert parts[-1]["usage"] == whole["usage"]


def test_a_stream_tells_tokens_beside_their_text():
    _, parts = stream(chat(stream=True, asks_logprobs=True), TOLD)
    told = [checked(ChatCompletionChunk, part).choices[0].logprobs for part in parts]
    assert told[0] is None and told[-1] is None
    streamed = [
        token for part in parts[1:-1] for token in part["choices"][0]["logprobs"]["content"]
    ]
    whole = completion(chat(asks_logprobs=True), IDS, [TOLD])
    assert streamed == whole["choices"][0]["logprobs"]["content"]


def test_an_event_is_one_line():
    for content in ("a\nb", "\r", "\u2028\u2029\x85", "é"):
        event = sse({"content": content})
        assert event.startswith(b"data: {") and event.endswith(b"}\n\n")
        assert len(event[:-2].decode().splitlines()) == 1
        assert json.loads(event[len("data: ") :]) == {"content": content}
    assert sse(END_OF_STREAM) == b"data: [DONE]\n\n"


# --- as clients read them ---


def test_openais_client_reads_a_whole_reply():
    content = json.dumps(completion(chat(2), IDS, [TOLD, PLAIN])).encode()
    reply = Wire(content).openai().chat.completions.create(model="tuned", messages=[], n=2)
    assert [choice.message.content for choice in reply.choices] == ["Ja!", "Nein, \u2028\n“nie”"]


def test_openais_client_reads_a_stream():
    content, _ = stream(chat(stream=True, include_usage=True), PLAIN)
    wire = Wire(content, "text/event-stream")
    chunks = list(wire.openai().chat.completions.create(model="tuned", messages=[], stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "Nein, \u2028\n“nie”"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage and chunks[-1].usage.total_tokens == 16


def test_openais_client_raises_what_a_stream_tells():
    chunks = Chunks(chat(stream=True), *IDS)
    error = api_error(RuntimeError("secret"))
    content = sse(chunks.first()) + sse(chunks.text(PLAIN[0])) + sse(error.body)
    wire = Wire(content, "text/event-stream")
    read = []
    with pytest.raises(openai.APIError, match="The server failed to answer"):
        for chunk in wire.openai().chat.completions.create(model="t", messages=[], stream=True):
            read.append(chunk.choices[0].delta.content)
    assert read == ["", "Nein, "]


def test_langchain_reads_both():
    whole = json.dumps(completion(chat(), IDS, [PLAIN])).encode()
    reply = Wire(whole).langchain().invoke("A?")
    assert reply.content == "Nein, \u2028\n“nie”"
    assert reply.usage_metadata
    assert reply.usage_metadata.get("input_token_details") == {"cache_read": 4}
    content, _ = stream(chat(stream=True, include_usage=True), PLAIN)
    chunks = list(Wire(content, "text/event-stream").langchain().stream("A?"))
    joined = sum(chunks[1:], chunks[0])
    assert isinstance(joined, AIMessageChunk)
    assert joined.content == "Nein, \u2028\n“nie”"
    assert joined.response_metadata["finish_reason"] == "length"
    assert joined.usage_metadata and joined.usage_metadata["total_tokens"] == 16


def test_models_are_listed_with_what_they_are_on():
    listed = models_list(("tuned", "base"), "base", 5)
    content = json.dumps(listed).encode()
    assert [model.id for model in Wire(content).openai().models.list()] == ["tuned", "base"]
    assert listed["object"] == "list"
    for entry in listed["data"]:
        model = Model.model_validate(entry, strict=True)
        assert (model.created, model.object, model.owned_by) == (5, "model", "tuninglab")
        # As vLLM tells of adapters.
        assert model.model_extra == {
            "root": "base",
            "parent": None if model.id == "base" else "base",
        }
    assert listed["data"][0] == model_entry("tuned", "base", 5)


def test_each_reply_has_its_own_id():
    ids = {new_ids().id for _ in range(100)}
    assert len(ids) == 100 and all(one.startswith("chatcmpl-") for one in ids)
    assert isinstance(new_ids().created, int)


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("error", "status", "code", "words"),
    [
        (UserError("picture 1 is damaged"), 400, None, "picture 1 is damaged"),
        (LongPromptError("12 tokens"), 400, "context_length_exceeded", "12 tokens"),
        (BusyError(7), 503, "busy", "in 7 s"),
        (ClosedError("the engine is being closed"), 503, "closed", "shutting down"),
        (RuntimeError("/home/me: secret"), 500, None, "failed to answer"),
        (ValueError("secret"), 500, None, "failed to answer"),
        (MemoryError(), 500, None, "failed to answer"),
        (ApiError(404, "no model", code="model_not_found"), 404, "model_not_found", "no model"),
    ],
)
def test_errors_as_clients_are_told(error, status, code, words):
    told = api_error(error)
    assert (told.status, told.code) == (status, code)
    assert words in told.message and "secret" not in told.message
    assert (told.type == SERVER_ERROR) == (status >= 500)
    assert told.retry_after_s == (7 if status == 503 and code == "busy" else None)


@pytest.mark.parametrize(
    ("last", "status"),
    [(Failed(UserError("a")), 400), (Failed(KeyError("a")), 500), (Done("cancelled", 3, 1), 503)],
)
def test_no_answer_that_was_broken_off_looks_whole(last, status):
    with pytest.raises(ApiError) as caught:
        completion(chat(2), IDS, [PLAIN, [Text("Ja"), last]])
    assert caught.value.status == status
    if isinstance(last, Failed):
        # Whoever logs it has the traceback.
        assert caught.value.__cause__ is last.error
    else:
        with pytest.raises(ApiError):
            Chunks(chat(stream=True), *IDS).done(last)

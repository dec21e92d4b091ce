"""What the engine tells, in OpenAI's JSON: whole answers, answers as they grow, models, errors."""

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tuninglab.errors import UserError
from tuninglab.serving.errors_json import SERVER_ERROR
from tuninglab.serving.exchange import (
    BusyError,
    Candidate,
    ClosedError,
    Done,
    Event,
    Failed,
    Text,
    Token,
)
from tuninglab.serving.protocol import ApiError, ChatRequest
from tuninglab.serving.reading import LongPromptError

END_OF_STREAM = "[DONE]"
# JSON has no infinity; OpenAI writes this for a token that could not come.
LEAST_LOGPROB = -9999.0


class Ids(NamedTuple):
    """What all parts of one reply say: its id, and when it was made, in seconds since 1970."""

    id: str
    created: int


def new_ids() -> Ids:
    """Those of a reply that begins now."""
    return Ids(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()))


def completion(chat: ChatRequest, ids: Ids, told: Sequence[Sequence[Event]]) -> dict[str, Any]:
    """The whole reply, a `chat.completion`.

    Args:
        chat: what was asked.
        ids: of this reply.
        told: all events of each request, the last of them `Done` or `Failed`.

    Raises:
        ApiError: a request failed, or was broken off; its cause is what was told.
    """
    ended = [_ended(events[-1]) for events in told]
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": _text(events), "refusal": None},
            "logprobs": _logprobs(_tokens(events)) if chat.asks_logprobs else None,
            "finish_reason": done.reason,
        }
        for index, (events, done) in enumerate(zip(told, ended, strict=True))
    ]
    return {
        "id": ids.id,
        "object": "chat.completion",
        "created": ids.created,
        "model": chat.model,
        "choices": choices,
        "usage": usage(ended),
    }


class Chunks:
    """One answer as it grows, as `chat.completion.chunk`s: `first`, then `text`s, then `done`.

    Args:
        chat: what was asked, one answer.
        id: of this reply.
        created: when it was made, in seconds since 1970.
    """

    def __init__(self, chat: ChatRequest, id: str, created: int):
        self.chat, self.ids = chat, Ids(id, created)

    def first(self) -> dict[str, Any]:
        """The chunk that says who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, event: Text) -> dict[str, Any]:
        """The chunk of a further bit of text."""
        logprobs = _logprobs(event.tokens) if self.chat.asks_logprobs else None
        return self._chunk({"content": event.text}, logprobs)

    def done(self, event: Done) -> list[dict[str, Any]]:
        """The chunk of the end, and that of the counts if they were asked for.

        Raises:
            ApiError: the answer was broken off.
        """
        last = self._chunk({}, reason=_ended(event).reason)
        if not self.chat.include_usage:
            return [last]
        return [last, self._head() | {"choices": [], "usage": usage([event])}]

    def _chunk(
        self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: Any = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        # Where counts come at the end, each chunk before has the place for them (OpenAI).
        counts = {"usage": None} if self.chat.include_usage else {}
        return self._head() | {"choices": [choice]} | counts

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.ids.id,
            "object": "chat.completion.chunk",
            "created": self.ids.created,
            "model": self.chat.model,
        }


def sse(data: dict[str, Any] | str) -> bytes:
    """An event of a stream (WHATWG's server-sent events): JSON, or a word such as END_OF_STREAM."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def usage(ended: Sequence[Done]) -> dict[str, Any]:
    """The counts of tokens of the answers to one prompt, which itself is counted once."""
    prompt, answers = ended[0].prompt_tokens, sum(done.answer_tokens for done in ended)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answers,
        "total_tokens": prompt + answers,
        "prompt_tokens_details": {"cached_tokens": ended[0].reused_tokens},
    }


def models_list(models: Iterable[str], base: str, created: int) -> dict[str, Any]:
    """All that is served, the first of it what is meant where none is named.

    Args:
        models: their names.
        base: the name of the base among them.
        created: when they came to be served, in seconds since 1970.
    """
    return {"object": "list", "data": [model_entry(name, base, created) for name in models]}


def model_entry(name: str, base: str, created: int) -> dict[str, Any]:
    """One served model; `parent` is what an adapter is on, as vLLM tells it."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "tuninglab",
        "root": base,
        "parent": None if name == base else base,
    }


def api_error(error: Exception) -> ApiError:
    """The answer to a client for whom something went wrong; it says nothing of our own errors.

    Args:
        error: of the engine: raised by `submit`, or told in `Failed`.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LongPromptError):
        return ApiError(400, str(error), code="context_length_exceeded", param="messages")
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    if isinstance(error, BusyError):
        wait_s = error.retry_after_s
        message = f"Too many requests wait already. Try again in {wait_s} s."
        return ApiError(503, message, SERVER_ERROR, "busy", retry_after_s=wait_s)
    if isinstance(error, ClosedError):
        return ApiError(503, "The server is shutting down.", SERVER_ERROR, "closed")
    return ApiError(500, "The server failed to answer; its own log says why.", SERVER_ERROR)


def _ended(event: Event) -> Done:
    if isinstance(event, Failed):
        raise api_error(event.error) from event.error
    assert isinstance(event, Done)
    # Only where the engine is closed, if the client is still there: no answer that was cut looks
    # whole.
    if event.reason == "cancelled":
        raise api_error(ClosedError())
    return event


def _text(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def _tokens(events: Sequence[Event]) -> list[Token]:
    return [token for event in events if isinstance(event, Text) for token in event.tokens]


def _logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    content = [
        _candidate(token) | {"top_logprobs": [_candidate(other) for other in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _candidate(token: Candidate) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": max(token.logprob, LEAST_LOGPROB),
        "bytes": list(token.bytes),
    }

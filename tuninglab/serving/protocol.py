"""What clients ask, in OpenAI's JSON of chat completions, to requests for the engine."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from tuninglab.data.sample import brief, checked_text
from tuninglab.serving.errors_json import INVALID_REQUEST, error_body
from tuninglab.serving.exchange import Request, Sampling
from tuninglab.serving.request_messages import read_messages
from tuninglab.untrusted import DEEPEST, is_deep

# Values of a body at most, by the characters that stand between them: a small body of many empty
# lists would fill the memory. A text has as many commas only where no model reads it.
MOST_VALUES = 2**18
MOST_STOPS, MOST_ANSWERS, MOST_TOP = 4, 4, 20
MOST_TOKENS = 2**20
MOST_TOP_K = 2**31 - 1
# Below, the most probable token comes always, and logits divided by still less would overflow.
LEAST_TEMPERATURE = 1e-3
# Others are in the way of overflow too.
LEAST_REPETITION, MOST_REPETITION = 0.01, 10.0
SEEDS = 2**63


class ApiError(Exception):
    """A request is answered with an error.

    Args:
        status: of HTTP.
        message: for the client; it must hold nothing that it may not know.
        type: the family, such as `INVALID_REQUEST`.
        code: what programs compare.
        param: the field that is meant.
        retry_after_s: when it is worth to ask again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str = INVALID_REQUEST,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.type = status, message, type
        self.code, self.param, self.retry_after_s = code, param, retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return error_body(self.message, self.type, self.code, self.param)


@dataclass(frozen=True)
class ChatRequest:
    """One body of `POST /v1/chat/completions`.

    Args:
        model: name of the served model that is asked.
        requests: one for each answer that is wanted.
        stream: the answer is sent as it grows.
        include_usage: a stream ends with the counts of tokens.
        asks_logprobs: tokens are told beside the text.
    """

    model: str
    requests: tuple[Request, ...]
    stream: bool = False
    include_usage: bool = False
    asks_logprobs: bool = False


def read_chat_request(
    body: bytes, models: Sequence[str], picture_hosts: Sequence[str] = ()
) -> ChatRequest:
    """What a client asks. It decodes pictures, and may fetch them: not for an event loop.

    Fields that are null are as if they were not there, and unknown ones are ignored, as clients
    send many. Where no temperature is given it is 0, as `chat` and `evaluate` answer.

    Args:
        body: of the HTTP request.
        models: names of what is served; the first is meant where none is named.
        picture_hosts: that pictures may be fetched from; none: pictures are in the request.

    Raises:
        ApiError: whatever is wrong, 400 (404 for a model that is not served).
    """
    fields = _Fields(_read_json(body))
    model = fields.text("model", models[0])
    if model not in models:
        raise model_not_found(model, models)
    _refuse_unknown_arts(fields)
    stream, answers = fields.flag("stream"), fields.integer("n", 1, 1, MOST_ANSWERS) or 1
    if stream and answers > 1:
        fields.refuse("n", "1 where the answer is streamed")
    logprobs = _logprobs(fields)
    settings: dict[str, Any] = {
        "max_new_tokens": _max_tokens(fields),
        "stop": _stop(fields),
        "logprobs": logprobs,
    }
    sampling = _sampling(fields)
    usage = fields.within("stream_options").flag("include_usage")
    try:
        messages, pictures = read_messages(fields.body.get("messages"), picture_hosts)
    except ValueError as error:
        raise ApiError(400, f"messages: {error}", param="messages") from error
    seeds = [None if sampling.seed is None else sampling.seed + k for k in range(answers)]
    requests = tuple(
        Request(model, messages, pictures, sampling=replace(sampling, seed=seed), **settings)
        for seed in seeds
    )
    return ChatRequest(model, requests, stream, stream and usage, logprobs is not None)


def model_not_found(name: str, models: Sequence[str]) -> ApiError:
    """The answer to whoever names a model that is not served."""
    served = ", ".join(models)
    message = f"There is no model {brief(name, 200)} here; served are: {served}."
    return ApiError(404, message, code="model_not_found", param="model")


class _Fields:
    """The fields of a JSON object, each read as what it must be.

    Args:
        body: the object.
        path: stands before a field's name in messages.
    """

    def __init__(self, body: dict[str, Any], path: str = ""):
        self.body, self.path = body, path

    def refuse(self, name: str, expected: str) -> NoReturn:
        given = brief(self.body.get(name))
        param = f"{self.path}{name}"
        raise ApiError(400, f"{param} is {given}; expected {expected}.", param=param)

    def flag(self, name: str) -> bool:
        value = self.body.get(name)
        if value is not None and not isinstance(value, bool):
            self.refuse(name, "true or false")
        return bool(value)

    def text(self, name: str, usual: str) -> str:
        value = self.body.get(name)
        if value is not None and not isinstance(value, str):
            self.refuse(name, "a text")
        return usual if value is None else value

    def integer(self, name: str, usual: int | None, least: int, most: int) -> int | None:
        value = self.body.get(name)
        if value is None:
            return usual
        # In Python true is a whole number.
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(name, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str, usual: float, least: float, most: float) -> float:
        value = self.body.get(name)
        if value is None:
            return usual
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most:
            self.refuse(name, f"a number from {least:g} to {most:g}")
        return float(value)

    def within(self, name: str) -> "_Fields":
        value = self.body.get(name)
        if value is not None and not isinstance(value, dict):
            self.refuse(name, "an object")
        return _Fields(value or {}, f"{self.path}{name}.")


def _read_json(body: bytes) -> dict[str, Any]:
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
        raise ApiError(400, f"The body holds too many values; at most {MOST_VALUES:,} are read.")
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        deep = is_deep(value)
    except RecursionError:
        value, deep = None, True
    except ValueError:
        # Python's own words tell of Python, and may quote what they stumbled on.
        raise ApiError(400, "The body is no JSON in UTF-8.") from None
    if deep:
        raise ApiError(400, f"The body is nested more than {DEEPEST} deep.")
    if not isinstance(value, dict):
        raise ApiError(400, f"The body is {brief(value)}; expected a JSON object.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _refuse_unknown_arts(fields: _Fields) -> None:
    """Refuse what would make the answer another thing than a text."""
    for choice, offered in (("tool_choice", "tools"), ("function_call", "functions")):
        if fields.body.get(choice) == "none":
            continue
        for name in (offered, choice):
            if fields.body.get(name) not in (None, []):
                raise ApiError(400, f"{name}: tools are not called here; leave it out.", param=name)
    form = fields.within("response_format")
    if form.body and form.body.get("type") != "text":
        raise ApiError(
            400,
            f"response_format is of type {brief(form.body.get('type'))}; answers are plain text "
            'here: leave it out, or give {"type": "text"}.',
            param="response_format",
        )
    if fields.body.get("modalities") not in (None, [], ["text"]):
        fields.refuse("modalities", '["text"]')
    if fields.body.get("audio") is not None:
        raise ApiError(400, "audio: answers are text here; leave it out.", param="audio")
    # It would change the answer, and no word would say that it did not.
    if fields.body.get("logit_bias"):
        raise ApiError(400, "logit_bias is not applied here; leave it out.", param="logit_bias")


def _max_tokens(fields: _Fields) -> int | None:
    new = fields.integer("max_completion_tokens", None, 1, MOST_TOKENS)
    old = fields.integer("max_tokens", None, 1, MOST_TOKENS)
    if new is not None and old is not None and new != old:
        fields.refuse("max_completion_tokens", f"what max_tokens is ({old}); give one of them")
    return old if new is None else new


def _stop(fields: _Fields) -> tuple[str, ...]:
    value = fields.body.get("stop")
    stops = [value] if isinstance(value, str) else [] if value is None else value
    fine = isinstance(stops, list) and len(stops) <= MOST_STOPS
    if not fine or not all(isinstance(stop, str) and stop for stop in stops):
        fields.refuse("stop", f"a text, or a list of at most {MOST_STOPS}, none of them empty")
    try:
        return tuple(checked_text(stop) for stop in stops)
    except ValueError as error:
        raise ApiError(400, f"stop: {error}", param="stop") from error


def _logprobs(fields: _Fields) -> int | None:
    """So many candidates beside each token; None: tokens are not told."""
    asked, top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, 0, MOST_TOP)
    if top and not asked:
        fields.refuse("top_logprobs", "it only with logprobs: true")
    return top if asked else None


def _sampling(fields: _Fields) -> Sampling:
    temperature = fields.number("temperature", 0.0, 0.0, 2.0)
    top_p = fields.number("top_p", 1.0, 0.0, 1.0)
    if top_p == 0:
        fields.refuse("top_p", "a number above 0, up to 1")
    return Sampling(
        temperature=temperature if temperature >= LEAST_TEMPERATURE else 0.0,
        top_p=top_p,
        top_k=fields.integer("top_k", 0, 0, MOST_TOP_K) or 0,
        repetition_penalty=fields.number(
            "repetition_penalty", 1.0, LEAST_REPETITION, MOST_REPETITION
        ),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        presence_penalty=fields.number("presence_penalty", 0.0, -2.0, 2.0),
        seed=fields.integer("seed", None, -SEEDS, SEEDS - 1),
    )

"""Errors as OpenAI's clients read them: JSON with one `error`, whatever has gone wrong."""

import json
from collections.abc import Iterable
from typing import Any

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


def error_body(
    message: str, type: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """The body of an answer that is an error (OpenAI's API reference; openai-python's APIError).

    Args:
        message: for people; it must hold nothing that the client may not know.
        type: the family, such as `INVALID_REQUEST`.
        code: what programs compare, such as "invalid_api_key".
        param: the field of the request that is meant.
    """
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def error_messages(
    status: int, body: dict[str, Any], headers: Iterable[tuple[bytes, bytes]] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two ASGI messages of an answer that is an error: its start, and its body.

    Args:
        status: of HTTP.
        body: from `error_body`.
        headers: besides type and length.
    """
    content = json.dumps(body).encode()
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *headers,
    ]
    start = {"type": "http.response.start", "status": status, "headers": fields}
    return start, {"type": "http.response.body", "body": content}

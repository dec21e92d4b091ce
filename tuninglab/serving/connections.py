"""HTTP connections that cannot be held without being used: bounds that uvicorn has no settings for.

uvicorn 0.54 closes a connection that is idle between two requests (timeout_keep_alive) and no
other: one that never ends its first lines, or never takes its answer, stays. Its bound on
connections (limit_concurrency) answers plain text, which clients of OpenAI's API cannot read.
"""

import asyncio
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tuninglab.serving.errors_json import INVALID_REQUEST, SERVER_ERROR, error_body, error_messages

CLOSE = (b"connection", b"close")


class BoundedProtocol(H11Protocol):
    """One connection, closed when its client keeps it waiting; given to uvicorn as `http=`.

    Attributes:
        head_s: the longest from the opening, or the end of an answer, to a request's whole head.
        taking_s: the longest that the client takes nothing of an answer.
        most: connections that are answered; further ones hear 503, beyond twice as many nothing.
    """

    head_s = 10.0
    taking_s = 30.0
    most = 256

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.head_timer: asyncio.TimerHandle | None = None
        self.taking_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; turn away what is too many."""
        super().connection_made(transport)
        if len(self.connections) > 2 * self.most:
            transport.abort()
        elif len(self.connections) > self.most:
            self.app = too_many
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self.head_timer = _stop(self.head_timer)
        self.taking_timer = _stop(self.taking_timer)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """As uvicorn, then see whether a head is still awaited."""
        super().handle_events()
        self._watch_head()

    def on_response_complete(self) -> None:
        """As uvicorn; what is closed but never taken by the client is not kept either."""
        super().on_response_complete()
        if self.transport.is_closing() and self.taking_timer is None:
            self.taking_timer = self.loop.call_later(self.taking_s, self.transport.abort)

    def pause_writing(self) -> None:
        """The client takes less than it is given: so it may be, for a time."""
        super().pause_writing()
        if self.taking_timer is None:
            self.taking_timer = self.loop.call_later(self.taking_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken nearly all."""
        super().resume_writing()
        if not self.transport.is_closing():
            self.taking_timer = _stop(self.taking_timer)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered as JSON too; in the middle of an answer nothing can be."""
        self._refuse(400, msg)

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self.head_timer = _stop(self.head_timer)
        elif self.head_timer is None:
            # Not started anew by each byte that comes.
            self.head_timer = self.loop.call_later(self.head_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._refuse(408, "The request came too slowly.")

    def _refuse(self, status: int, message: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            start, body = error_messages(status, error_body(message, INVALID_REQUEST), [CLOSE])
            head = h11.Response(status_code=status, headers=start["headers"])
            for event in (head, h11.Data(data=body["body"]), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


async def too_many(scope: Scope, receive: Receive, send: Send) -> None:
    """The app of a connection beyond the bound."""
    body = error_body("Too many connections. Try again.", SERVER_ERROR, "busy")
    for message in error_messages(503, body, [CLOSE, (b"retry-after", b"2")]):
        await send(message)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

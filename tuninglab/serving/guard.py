"""The guard before the API: who may ask, by the request's head; how much may come, and how slow."""

import asyncio
import re

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuninglab.serving.request_head import (
    GuardSettings,
    Refusal,
    check_body_fields,
    check_host,
    check_key,
    check_origin,
    read_fields,
    too_large,
)

API = "/v1/"
DISCONNECT: Message = {"type": "http.disconnect"}
# Names of header fields, such as a page may ask to send (RFC 9110 §5.1).
FIELD_NAMES = re.compile(r"[A-Za-z0-9-]+(?:\s*,\s*[A-Za-z0-9-]+)*")
LINGER_BODIES = 2


class Guard:
    """ASGI middleware that lets requests through which the server means to answer.

    The checks of the head come before the body is read: Host, key, Origin, Content-Type, length.
    The app then reads the body itself, through the guard, which counts and keeps the time; so an
    app can refuse without reading (a client sends 32 MiB anew each time that it tries again).

    Args:
        app: what answers.
        settings: whom it answers, and how much it reads.
    """

    def __init__(self, app: ASGIApp, settings: GuardSettings):
        self.app = app
        self.settings = settings
        # Bytes of the bodies of all requests that are under way.
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await Passage(self, scope, receive, send).run()
        else:
            await send({"type": "websocket.close", "code": 1008})


class Passage:
    """One request on its way in, and its answer on its way out.

    Attributes:
        whole: all of the request's body has come.
        refusal: why it is not answered, found while its body was read.
        started: the answer has left.
    """

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send):
        self.guard, self.settings = guard, guard.settings
        self.scope, self._receive, self._send = scope, receive, send
        names = {name for name, value in scope["headers"] if value != b"0"}
        self.whole = not names & {b"content-length", b"transfer-encoding"}
        # A client that waits for leave to send its body has not sent any.
        self.waits = b"expect" in names
        self.origin: str | None = None
        self.read_bytes = 0
        self.refusal: Refusal | None = None
        self.started = False
        self.deadline_s = asyncio.get_running_loop().time() + self.settings.body_s

    async def run(self) -> None:
        """Check, then let the app answer, then say why if it could not."""
        try:
            fields = read_fields(self.scope["headers"])
            check_host(fields, self.settings)
            self.origin = fields.get(b"origin")
            if await self._preflight(fields):
                return
            method, path = self.scope["method"], self.scope["path"]
            check_key(method, path, fields, self.settings)
            check_origin(fields, self.settings)
            check_body_fields(method, fields, self.settings)
        except Refusal as refusal:
            await self._refuse(refusal)
            return
        try:
            await self.guard.app(self.scope, self.receive, self.send)
        except ClientDisconnect:
            # Nobody is there to be answered, or somebody is told below.
            pass
        finally:
            self.guard.held -= self.read_bytes
        if self.refusal is not None and not self.started:
            await self._refuse(self.refusal)

    async def receive(self) -> Message:
        """The next message for the app; of a body that is refused it hears that the client left."""
        if self.refusal is not None:
            return DISCONNECT
        if self.whole:
            return await self._receive()
        left_s = self.deadline_s - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(left_s, self.settings.message_s)):
                message = await self._receive()
        except TimeoutError:
            self.refusal = Refusal(408, "The request came too slowly. Send it again.")
            return DISCONNECT
        if message["type"] != "http.request":
            return message
        self.whole = not message.get("more_body", False)
        self.read_bytes += len(message.get("body", b""))
        self.guard.held += len(message.get("body", b""))
        if self.read_bytes > self.settings.body_bytes:
            self.refusal = too_large(self.settings)
        elif self.guard.held > self.settings.bodies_bytes:
            wait = [(b"retry-after", b"2")]
            self.refusal = Refusal(503, "Too many large requests at once.", "busy", wait)
        return message if self.refusal is None else DISCONNECT

    async def send(self, message: Message) -> None:
        """Let the app's answer out, unless the client is to hear of a refusal instead."""
        if self.refusal is None or self.started:
            await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": self._headers(message)}
        elif not message.get("more_body", False) and not self.whole:
            # Closed with bytes unread, a connection is reset, and the client may lose the answer.
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body"}
        await self._send(message)

    async def _refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        for message in refusal.answer:
            await self._pass_on(message)

    async def _linger(self) -> None:
        if self.waits or (self.refusal is not None and self.refusal.status == 408):
            return
        left_bytes = LINGER_BODIES * self.settings.body_bytes
        try:
            async with asyncio.timeout(self.settings.linger_s):
                while left_bytes > 0:
                    message = await self._receive()
                    if not message.get("more_body", False):
                        return
                    left_bytes -= len(message.get("body", b""))
        except TimeoutError:
            pass

    async def _preflight(self, fields: dict[bytes, str]) -> bool:
        """Whether this is a browser's question if a page may ask (Fetch §3.2.2), now answered."""
        asks = b"access-control-request-method" in fields and self.scope["method"] == "OPTIONS"
        # It comes without the key. Other origins are refused with all that is theirs.
        if not asks or self.origin is None or self.origin != self.settings.cors_origin:
            return False
        headers = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-max-age", b"600"),
        ]
        names = fields.get(b"access-control-request-headers", "")
        if FIELD_NAMES.fullmatch(names):
            headers.append((b"access-control-allow-headers", names.encode()))
        await self._pass_on({"type": "http.response.start", "status": 204, "headers": headers})
        await self._pass_on({"type": "http.response.body"})
        return True

    def _headers(self, message: Message) -> list[tuple[bytes, bytes]]:
        """Those of the app, and what every answer has."""
        given = list(message.get("headers", ()))
        added = [
            (b"x-content-type-options", b"nosniff"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]
        if self.refusal is not None or self.scope["path"].startswith(API):
            added.append((b"cache-control", b"no-store"))
        if self.origin is not None and self.origin == self.settings.cors_origin:
            added.append((b"access-control-allow-origin", self.origin.encode()))
            added.append((b"access-control-expose-headers", b"retry-after"))
            added.append((b"vary", b"origin"))
        if not self.whole:
            added.append((b"connection", b"close"))
        names = {name for name, _ in added}
        return [field for field in given if field[0].lower() not in names] + added

"""A small guarded app on a real uvicorn, for tests of what stands before the API."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from tuninglab.serving.connections import BoundedProtocol
from tuninglab.serving.guard import Guard, GuardSettings

JSON = {"content-type": "application/json"}


async def ask(request):
    """What an API does: read the body, answer."""
    return JSONResponse({"bytes": len(await request.body())})


async def busy(request):
    """What an API that has no place does: answer without reading."""
    return JSONResponse({"error": {"code": "busy"}}, 503, {"Retry-After": "1"})


async def stream(request):
    """An answer in parts, after the body was read."""
    await request.body()

    async def parts():
        for number in range(3):
            yield f"data: {number}\n\n"

    return StreamingResponse(parts(), headers={"Cache-Control": "no-cache"})


async def endless(request):
    """An answer that is never at its end."""

    async def parts():
        while True:
            yield bytes(2**16)
            # Sending to a client that has gone waits for nothing: others need a turn.
            await asyncio.sleep(0)

    return StreamingResponse(parts())


async def page(request):
    """What everybody may see."""
    return PlainTextResponse("the page", headers={"Cache-Control": "max-age=60"})


def app():
    """An API and a page."""
    routes = [Route(path, page) for path in ("/", "/page.js", "/page.css", "/health", "/secret")]
    for place in (ask, busy, stream, endless):
        routes.append(Route(f"/v1/{place.__name__}", place, methods=["GET", "POST"]))
    return Starlette(routes=routes)


@contextlib.contextmanager
def serving(settings=None, protocol=BoundedProtocol, inner=None):
    """An app behind the guard on a free port; gives the server, whose `port` it is.

    Args:
        settings: of the guard; None: its own.
        protocol: of a connection.
        inner: the app; None: the small one.
    """
    guard = Guard(inner or app(), settings or GuardSettings())
    config = uvicorn.Config(
        guard, port=0, http=protocol, ws="none", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    server.guard, server.port = guard, server.servers[0].sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{server.port}"
    try:
        yield server
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)
        assert not thread.is_alive()


def settle(server):
    """Wait until no request is under way; what the guard holds of bodies then."""
    for _ in range(1000):
        if not server.server_state.tasks:
            return server.guard.held
        time.sleep(0.01)
    raise AssertionError(f"{server.server_state.tasks} do not end")


def raw(server, content):
    """Send bytes; all that comes back until the server closes, or b"" where it resets."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(content)
        return rest(connection)


def up_to(connection, end):
    """What comes up to some bytes, or until the other side closes."""
    received = b""
    while not received.endswith(end) and (chunk := connection.recv(65536)):
        received += chunk
    return received


def rest(connection):
    """All that comes until the other side closes."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def error_of(answer):
    """Status and error of an answer as bytes, after a look that it is JSON."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\ncontent-type: application/json\r\n" in head.lower() + b"\r\n", answer
    return int(head.split()[1]), json.loads(body)["error"]

"""The verb `serve`: a page and an API on a port of this machine."""

import asyncio
import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from tuninglab.config import ServeConfig
from tuninglab.console import say
from tuninglab.errors import UserError
from tuninglab.run_folder.named_model import find_model
from tuninglab.serving.app import make_app
from tuninglab.serving.connections import BoundedProtocol
from tuninglab.serving.engine import Engine
from tuninglab.serving.examples import read_examples
from tuninglab.serving.guard import Guard
from tuninglab.serving.open_engine import open_engine, tell
from tuninglab.serving.picture_urls import check_hosts
from tuninglab.serving.request_head import GuardSettings
from tuninglab.serving.request_log import RequestLog

# Answers under way may end in this time, then they are cut; a second later connections are.
DRAIN_S = 8
CUT_S = 1
KEEP_ALIVE_S = 5
HEAD_BYTES = 2**16


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C; then answers under way have some seconds to end.

    Raises:
        UserError: the settings let others in without a key, the port is taken, or the model or an
            adapter cannot be loaded.
    """
    settings = GuardSettings.from_config(config)
    check_hosts(config.allow_image_urls)
    # Before the model is loaded, which takes long.
    with bound(config.host, config.port) as place:
        engine, base = open_engine(config)
        tell(engine)
        examples = read_examples(find_model(config.model).run)
        app = make_app(engine, base, examples, config.allow_image_urls, config.log_requests)
        _listen(config, place)
        url = address_of(config.host, place.getsockname()[1])

        def ready() -> None:
            tell_served(url, engine.models, settings.api_key is not None)
            if config.open:
                # Browsers of a terminal keep whoever starts them waiting.
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

        server = Server(RequestLog(Guard(app, settings)), engine, ready)
        server.run([place])
        if server.draining.is_alive():
            # A long prompt is being read, which cannot be cut; nobody waits for it any more, and
            # Python would take the process down as this thread came back to it.
            os._exit(0)


class Server(uvicorn.Server):
    """uvicorn, ended by signals with exit code 0, together with the engine.

    Args:
        app: ASGI.
        engine: is closed with the server.
        ready: is called once requests are answered.
    """

    def __init__(self, app: ASGIApp, engine: Engine, ready: Callable[[], None]):
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            # What fails is said with its request.
            log_level="critical",
            access_log=False,
            server_header=False,
            # Whatever stands before us: nothing here goes by the address of a client.
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S + CUT_S,
            h11_max_incomplete_event_size=HEAD_BYTES,
        )
        super().__init__(config)
        self.engine, self.ready = engine, ready
        self.draining = threading.Thread(target=engine.close, args=(DRAIN_S,), daemon=True)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn, then say so."""
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers end, in the engine and on their way out."""
        _, running = self.engine.load()
        if running:
            say(f"Stopping; {running} answers under way have {DRAIN_S} s to end.")
        self.draining.start()
        await super().shutdown(sockets)
        if self.force_exit:
            threading.Thread(target=self.engine.close, daemon=True).start()
        await asyncio.to_thread(self.draining.join, CUT_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End; at the second Ctrl-C at once.

        uvicorn's own raises the signal again in the end, which would be an exit code of failure.
        """
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address of this machine; it does not listen yet, so nobody waits in vain.

    Raises:
        UserError: there is no such address here, or the port is taken or not allowed.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: no address of this machine; try 127.0.0.1") from error
    # `localhost` may be both; clients try the older one too.
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    place = socket.socket(family, kind, protocol)
    # Else the port of a server that has ended is taken for a minute.
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind(address)
    except OSError as error:
        place.close()
        raise _not_ours(host, port, error) from error
    return place


def address_of(host: str, port: int) -> str:
    """The address of the page, for this machine."""
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def tell_served(url: str, models: tuple[str, ...], asks_key: bool) -> None:
    """Say where what is served, and how to ask it."""
    key = ' -H "Authorization: Bearer $TUNINGLAB_API_KEY"' if asks_key else ""
    body = '{"messages": [{"role": "user", "content": "What is this?"}]}'
    say(
        f"models: {', '.join(models)} (the first where none is named)\n"
        f"page:   {url}\n"
        f"API:    {url}v1, as OpenAI's\n"
        f"try:    curl {url}v1/chat/completions -H 'Content-Type: application/json'{key} \\\n"
        f"          -d '{body}'\n"
        "Ctrl-C ends it."
    )


def _listen(config: ServeConfig, place: socket.socket) -> None:
    try:
        place.listen()
    except OSError as error:
        raise _not_ours(config.host, config.port, error) from error


def _not_ours(host: str, port: int, error: OSError) -> UserError:
    return UserError(
        f"--host {host} --port {port}: {error.strerror}. Name another port, or --port 0 for any "
        "that is free"
    )

"""A server for the tests of the page: its files, and the API with answers by a script."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import tuninglab.serving

FILES = Path(tuninglab.serving.__file__).parent / "page"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
BASE, TUNED = "tiny-base", "my-run"


class Cut:
    """In a script: the connection ends here, without a word."""


# Text, a gate to wait at, an error to tell in mid-stream, or the end of the connection.
Step = str | threading.Event | Exception | type[Cut]


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error as OpenAI tells it."""
    return JSONResponse({"error": {"message": message}}, status, headers)


class PageServer:
    """What the page got, and what it is to get.

    Attributes:
        asked: the bodies of all requests for an answer that were let in.
        refusals: replies to the next requests for an answer, instead of one.
        script: steps of the answer to a body.
        left: how many clients went away in the middle.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.refusals: list[Response] = []
        self.script: Callable[[dict[str, Any]], Sequence[Step]] = lambda body: ["A ", "cat."]
        self.examples: list[dict[str, Any]] = []
        self.pictures: list[Path] = []
        self.key: str | None = None
        self.left = 0
        self.url = ""

    def app(self) -> Starlette:
        """The routes of `tuninglab serve`."""
        return Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.answer, methods=["POST"]),
                Route("/examples", self.listed),
                Route("/examples/{number:int}", self.picture),
                Route("/{name:path}", self.file),
            ]
        )

    def refused(self, request: Request) -> Response | None:
        """A reply to who has not the key."""
        given = request.headers.get("authorization")
        if self.key is not None and given != f"Bearer {self.key}":
            return error(401, "A key is needed.")
        return None

    async def file(self, request: Request) -> Response:
        """The page's own files; an HTML file where none is named."""
        path = FILES / (request.path_params["name"] or "index.html")
        if path.parent != FILES or not path.is_file():
            return error(404, "Not Found")
        return FileResponse(path, headers={"Content-Security-Policy": POLICY})

    async def models(self, request: Request) -> Response:
        """A base and an adapter on it."""
        entries = [{"id": TUNED, "parent": BASE}, {"id": BASE, "parent": None}]
        return self.refused(request) or JSONResponse({"object": "list", "data": entries})

    async def listed(self, request: Request) -> Response:
        """The examples."""
        return self.refused(request) or JSONResponse({"examples": self.examples})

    async def picture(self, request: Request) -> Response:
        """The picture of an example."""
        path = self.pictures[request.path_params["number"]]
        return self.refused(request) or FileResponse(path)

    async def answer(self, request: Request) -> Response:
        """The next refusal, else an answer by the script."""
        body = await request.json()
        refusal = self.refused(request) or (self.refusals.pop(0) if self.refusals else None)
        if refusal is not None:
            return refusal
        assert body["stream"] is True
        assert body["stream_options"] == {"include_usage": True}
        self.asked.append(body)
        return StreamingResponse(self.events(body), media_type="text/event-stream")

    async def events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        tokens = 0
        yield said({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        try:
            for step in self.script(body):
                if step is Cut:
                    return
                if isinstance(step, threading.Event):
                    while not step.is_set():
                        await asyncio.sleep(0.01)
                elif isinstance(step, Exception):
                    yield said({"error": {"message": str(step)}})
                    return
                else:
                    tokens += 1
                    yield said({"choices": [{"delta": {"content": step}}]})
        except asyncio.CancelledError:
            self.left += 1
            raise
        reason = "length" if tokens == body.get("max_tokens") else "stop"
        yield said({"choices": [{"delta": {}, "finish_reason": reason}]})
        yield said({"choices": [], "usage": {"completion_tokens": tokens}})
        yield "data: [DONE]\n\n"


def with_examples(server: PageServer, folder: Path) -> None:
    """Give a server two examples, the second without a picture."""
    path = folder / "example.png"
    Image.new("RGB", (40, 30), (255, 0, 0)).save(path)
    server.pictures = [path]
    server.examples = [
        {"question": "Which colour?", "answer": "red <b>", "picture": "/examples/0"},
        {"question": "How many?", "answer": "two", "picture": None},
    ]


def said(chunk: dict[str, Any]) -> str:
    """One event."""
    return f"data: {json.dumps(chunk)}\n\n"


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of an app that is served by uvicorn in a thread, on any free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [free]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{free.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()

"""The HTTP API and the page of `tuninglab serve`, for one engine."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tuninglab.errors import UserError
from tuninglab.serving.answering import USUAL_WAIT_S, AnsweringEngine, ChatRoute, Json
from tuninglab.serving.examples import Example
from tuninglab.serving.exchange import BusyError, ClosedError
from tuninglab.serving.page_files import MEDIA_TYPES, page_files
from tuninglab.serving.protocol import ApiError, model_not_found
from tuninglab.serving.replies import api_error, model_entry, models_list
from tuninglab.untrusted import shown

# The page is whole by itself; what a model writes can load nothing and call nobody.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; object-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Another version of the package may answer the next time.
    "Cache-Control": "no-cache",
}


def make_app(
    engine: AnsweringEngine,
    base: str,
    examples: Sequence[Example] = (),
    picture_hosts: Sequence[str] = (),
    log_requests: bool = False,
) -> Starlette:
    """The ASGI application, without the guard that belongs before it.

    Args:
        engine: that answers.
        base: which of its models has no adapter.
        examples: questions to try.
        picture_hosts: hosts that pictures of requests may be fetched from; none: only `data:` URLs.
        log_requests: say what is asked and answered.
    """
    facts = Facts(engine, base, examples)
    chat = ChatRoute(engine, picture_hosts, log_requests)

    # Starlette takes an object for an ASGI application, a function for a route.
    async def answer(request: Request) -> Response:
        return await chat(request)

    app = Starlette(
        routes=[
            *(Route(path, _file(path)) for path in page_files()),
            Route("/health", facts.health),
            Route("/v1/models", facts.models),
            Route("/v1/models/{id:path}", facts.model),
            Route("/v1/chat/completions", answer, methods=["POST"]),
            Route("/examples", facts.listed),
            Route("/examples/{number:int}", facts.picture),
        ],
        exception_handlers={
            HTTPException: no_route,
            **dict.fromkeys((ApiError, UserError, BusyError, ClosedError), refuse),
            ClientDisconnect: left,
            Exception: fail,
        },
    )
    # Redirects repeat the Host header, and clients of the API do not follow them.
    app.router.redirect_slashes = False
    return app


class Facts:
    """What is told of the server: its state, its models, questions to try.

    Args:
        engine: that answers.
        base: which of its models has no adapter.
        examples: questions to try.
    """

    def __init__(self, engine: AnsweringEngine, base: str, examples: Sequence[Example]):
        self.engine, self.base, self.examples = engine, base, examples
        self.created = int(time.time())

    async def health(self, request: Request) -> Response:
        """That the server answers, and how much it has to do."""
        waiting, running = self.engine.load()
        return Json({"status": "ok", "waiting": waiting, "running": running})

    async def models(self, request: Request) -> Response:
        """All served models, the one that was named first."""
        return Json(models_list(self.engine.models, self.base, self.created))

    async def model(self, request: Request) -> Response:
        """One served model.

        Raises:
            ApiError: 404, there is none of this name.
        """
        name = request.path_params["id"]
        if name not in self.engine.models:
            raise model_not_found(name, self.engine.models)
        return Json(model_entry(name, self.base, self.created))

    async def listed(self, request: Request) -> Response:
        """Questions to try."""
        entries = [
            {
                "question": example.question,
                "answer": example.answer,
                "picture": None if example.picture is None else f"/examples/{number}",
            }
            for number, example in enumerate(self.examples)
        ]
        return Json({"examples": entries}, headers=PAGE_HEADERS)

    async def picture(self, request: Request) -> Response:
        """The picture of a question to try.

        Raises:
            HTTPException: 404, there is no such question, or it has no picture.
        """
        number = request.path_params["number"]
        example = self.examples[number] if number < len(self.examples) else None
        if example is None or example.picture is None:
            raise HTTPException(404)
        return Response(example.picture, media_type=example.media_type, headers=PAGE_HEADERS)


def _file(path: str) -> Callable[[Request], Awaitable[Response]]:
    """The route of a file of the page, which is read once."""
    file = page_files()[path]
    content, media_type = file.read_bytes(), MEDIA_TYPES[file.suffix]

    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=PAGE_HEADERS)

    return answer


async def refuse(request: Request, error: Exception) -> Response:
    """The answer to what is not answered, and why."""
    return _error(api_error(error))


async def no_route(request: Request, error: Exception) -> Response:
    """The answer where there is no such path, or it takes another method."""
    assert isinstance(error, HTTPException)
    headers = error.headers or {}
    what = f"{shown(request.method)} {shown(request.url.path)}"
    text = f"{what}: there is nothing here. The API begins with /v1/."
    if error.status_code == 405:
        text = f"{what}: this path takes {headers.get('Allow', 'other methods')}."
    return _error(ApiError(error.status_code, text), headers)


async def fail(request: Request, error: Exception) -> Response:
    """The answer where the server failed; what happened goes on to whoever called the app."""
    return _error(api_error(error))


async def left(request: Request, error: Exception) -> Response:
    """The end where the client has left: nobody hears it."""
    return Response(status_code=499)


def _error(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    wait = {"Retry-After": str(error.retry_after_s or USUAL_WAIT_S)} if error.status == 503 else {}
    return Json(error.body, error.status, {**(headers or {}), **wait})

"""`POST /v1/chat/completions`: a request's JSON to the engine, and its answers to the client."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tuninglab.console import say
from tuninglab.serving.exchange import BusyError, ClosedError, Done, Event, Failed, Text
from tuninglab.serving.exchange import Request as Asked
from tuninglab.serving.protocol import ChatRequest, read_chat_request
from tuninglab.serving.replies import END_OF_STREAM, Chunks, api_error, completion, new_ids, sse
from tuninglab.serving.rows import Answering

# An answer in bits: never kept by proxies on the way, nor held back until it is whole.
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
# What a client waits before it asks anew, where nothing better is known.
USUAL_WAIT_S = 2


class AnsweringEngine(Protocol):
    """What is asked of an engine here (serving/engine.py)."""

    models: tuple[str, ...]
    max_rows: int
    max_queue: int

    def submit(
        self, requests: Sequence[Asked], on_event: Callable[[int, Event], None]
    ) -> Answering:
        """Queue requests, whose events are told from another thread."""
        ...

    def load(self) -> tuple[int, int]:
        """How many requests wait, and how many are being answered."""
        ...


class ChatRoute:
    """Answers requests for the next turn of a dialogue.

    Args:
        engine: that answers.
        picture_hosts: hosts that pictures may be fetched from.
        log_requests: say what was asked and answered.
    """

    def __init__(
        self, engine: AnsweringEngine, picture_hosts: Sequence[str] = (), log_requests: bool = False
    ):
        self.engine, self.picture_hosts, self.log_requests = engine, picture_hosts, log_requests

    async def __call__(self, request: Request) -> Response:
        """A whole answer, or the beginning of a streamed one.

        Raises:
            ApiError: the request is refused.
            BusyError: there is no place for it now.
            ClosedError: the engine shuts down.
            ClientDisconnect: nobody waits for the answer any more.
            Exception: what the engine failed with.
        """
        self._check_place()
        # Not `body()`, which keeps it for as long as the request lasts.
        body = b"".join([chunk async for chunk in request.stream()])
        # Pictures are decoded to see that they can be, which takes its time.
        chat = await asyncio.to_thread(
            read_chat_request, body, self.engine.models, self.picture_hosts
        )
        del body
        request.state.model, request.state.usage = chat.model, Usage()
        if self.log_requests:
            _tell_request(chat)
        heard = events(self.engine, chat.requests, request.receive)
        ids = new_ids()
        counted = self._counted(heard, request.state.usage)
        if not chat.stream:
            async with aclosing(counted):
                told: list[list[Event]] = [[] for _ in chat.requests]
                async for number, event in counted:
                    told[number].append(event)
            return Json(completion(chat, ids, told))
        # Awaited here, for until the first bit there is a status to tell of an error.
        first = await anext(counted)
        return EventStream(Chunks(chat, *ids), first[1], counted)

    def _check_place(self) -> None:
        """See from the head alone whether there is a place: clients send all their pictures again.

        Raises:
            BusyError: the queue is full.
        """
        waiting, running = self.engine.load()
        if waiting + 1 - max(0, self.engine.max_rows - running) > self.engine.max_queue:
            raise BusyError(USUAL_WAIT_S)

    async def _counted(
        self, heard: AsyncGenerator[tuple[int, Event]], usage: "Usage"
    ) -> AsyncGenerator[tuple[int, Event]]:
        async with aclosing(heard):
            async for number, event in heard:
                usage.take(event)
                if self.log_requests and isinstance(event, Text):
                    usage.texts[number] = usage.texts.get(number, "") + event.text
                yield number, event
        for _, text in sorted(usage.texts.items()):
            say(f"  answered: {text!r}")


class Usage:
    """What a request took, for the line that the server says of it.

    Attributes:
        prompt_tokens: of its prompt, once for all answers to it.
        answer_tokens: of all its answers.
        texts: of the answers, by the number of each, where they are said.
    """

    def __init__(self):
        self.prompt_tokens = self.answer_tokens = 0
        self.texts: dict[int, str] = {}

    def take(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, Done):
            self.prompt_tokens = event.prompt_tokens
            self.answer_tokens += event.answer_tokens


async def events(
    engine: AnsweringEngine, requests: Sequence[Asked], receive: Receive
) -> AsyncGenerator[tuple[int, Event]]:
    """What becomes of requests: the number of each and `Text`s, then one `Done`, in the event loop.

    Whatever ends it, also that it is closed, frees the places in the engine.

    Args:
        engine: works in a thread of its own.
        requests: taken together.
        receive: of ASGI, after the body: tells when the client has left.

    Raises:
        BusyError: as the engine's `submit`.
        ClosedError: also where answers under way are cut, because the engine shuts down.
        ClientDisconnect: the client has left.
        Exception: what a request failed with.
    """
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()

    def hear(number: int, event: Event) -> None:
        # The loop may have ended before the engine: nobody hears then.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(told.put_nowait, (number, event))

    answering = engine.submit(requests, hear)
    leaving = asyncio.create_task(_left(receive))
    leaving.add_done_callback(lambda _: told.put_nowait(None))
    under_way = len(requests)
    try:
        while under_way:
            heard = await told.get()
            if heard is None:
                raise ClientDisconnect
            event = heard[1]
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Done):
                if event.reason == "cancelled":
                    raise ClosedError("the server is shutting down")
                under_way -= 1
            yield heard
    finally:
        leaving.cancel()
        answering.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Json(Response):
    """JSON in ASCII: texts of others may hold halves of characters, which are nothing in UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes of a value."""
        return json.dumps(content).encode()


class EventStream(Response):
    """An answer as server-sent events (HTML standard §9.2), in OpenAI's chunks.

    Args:
        chunks: make JSON of events.
        first: event, which has come already.
        rest: of the events.
    """

    def __init__(self, chunks: Chunks, first: Event, rest: AsyncGenerator[tuple[int, Event]]):
        super().__init__(headers=STREAM_HEADERS, media_type="text/event-stream")
        # It is not known how long it becomes.
        del self.headers["content-length"]
        self.chunks, self.first, self.rest = chunks, first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events; an error in the middle is an event too, and the last."""
        send_data = partial(_send, send)
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with aclosing(self.rest):
            await send(start)
            try:
                await send_data(sse(self.chunks.first()) + self._data(self.first))
                async for _, event in self.rest:
                    await send_data(self._data(event))
                await send_data(sse(END_OF_STREAM))
            except ClientDisconnect:
                raise
            except Exception as error:
                told = api_error(error)
                await send_data(sse(told.body))
                await send({"type": "http.response.body"})
                if told.status == 500:
                    raise
                return
        await send({"type": "http.response.body"})

    def _data(self, event: Event) -> bytes:
        if isinstance(event, Text):
            return sse(self.chunks.text(event))
        assert isinstance(event, Done)
        return b"".join(sse(chunk) for chunk in self.chunks.done(event))


async def _send(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _tell_request(chat: ChatRequest) -> None:
    for message in chat.requests[0].messages:
        texts = [part.get("text", "<image>") for part in message["content"]]
        say(f"  {message['role']}: {' '.join(texts)!r}")

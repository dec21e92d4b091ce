"""One line for each request that came: what was asked of which model, and how it ended."""

import time
import traceback
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuninglab.console import say
from tuninglab.untrusted import shown


class RequestLog:
    """ASGI middleware that says each request once it has ended; nothing of what was asked.

    Args:
        app: what answers; it may leave `model` and `usage` in the request's state.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app answer, then say how."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began_s, statuses = time.monotonic(), []

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        except Exception as error:
            # Here only: clients hear nothing of it.
            say("".join(traceback.format_exception(error)).rstrip())
            raise
        finally:
            status = statuses[0] if statuses else "unanswered"
            told = [shown(scope["method"]), shown(scope["path"]), status]
            took_s = time.monotonic() - began_s
            say(" ".join(map(str, [*told, *_asked(scope), f"{took_s:.2f} s"])))


def _asked(scope: Scope) -> list[Any]:
    state = scope.get("state", {})
    if "usage" not in state:
        return []
    usage = state["usage"]
    return [state["model"], f"{usage.prompt_tokens}+{usage.answer_tokens} tokens"]

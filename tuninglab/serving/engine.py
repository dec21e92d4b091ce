"""The engine: one thread owns the model, and answers the requests of all others together."""

from collections.abc import Callable, Sequence

from tuninglab.serving.exchange import Event, Request


class Answering:
    """Requests under way, for whoever gave them."""

    def cancel(self) -> None:
        """Free their places at the next token; from any thread, also after they have ended."""
        raise NotImplementedError


class Engine:
    """Answers requests, several at a time.

    Attributes:
        models: names of what is served; the first is meant where none is named.
    """

    models: tuple[str, ...]

    def submit(
        self, requests: Sequence[Request], on_event: Callable[[int, Event], None]
    ) -> Answering:
        """Queue requests that are taken together or not at all; returns at once.

        Args:
            requests: one or several, such as the n answers to one prompt.
            on_event: is called in the engine's thread with the number of a request and what has
                become of it: any number of `Text`, then one `Done` or `Failed`. It must be quick.

        Raises:
            BusyError: too many wait already.
            ClosedError: the engine is being closed.
        """
        raise NotImplementedError

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more requests, let those that run end for so long, then end the thread."""
        raise NotImplementedError

"""What goes on while a command works: bars that move on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tuninglab.console import is_main_process, say

# Nobody needs to be told of what takes no longer.
QUIET_S = 1.0
# Between plain lines: enough to follow a log file, few enough to read it later.
INTERVAL_S = 5.0

# rich shows one display at a time, which all who work at that time share.
_shown: Any = None


@contextmanager
def bars() -> Iterator[Any]:
    """The bars on the screen, as rich's Progress; None where nothing can move.

    A file has no screen, and neither has a terminal without cursor movements (TERM=dumb): rich
    would draw there once, at the end.
    """
    global _shown
    from rich.console import Console

    console = Console(stderr=True)
    if _shown is not None or not (console.is_interactive and is_main_process()):
        yield _shown
        return
    _shown = _progress(console)
    try:
        with _shown:
            yield _shown
    finally:
        _shown = None


@contextmanager
def working(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Say what goes on in the block, if that takes more than a moment.

    Args:
        what: goes on, e.g. "checking pictures".
        total: how many there are; None: not known.

    Returns:
        Is to be called with how many are done.
    """
    work = _Work(what, total)
    # A thread, because the work itself may be one long call: an import, a model that loads.
    watcher = threading.Thread(target=work.watch, daemon=True)
    if is_main_process():
        watcher.start()
    try:
        yield work.note
    finally:
        work.over.set()
        if watcher.ident is not None:
            watcher.join()


def duration(seconds: float) -> str:
    """Seconds as `0.8 s`, `12 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, left = divmod(minutes, 60)
    return (
        f"{hours} h {left} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
    )


class _Work:
    def __init__(self, what: str, total: int | None):
        self.what, self.total, self.done = what, total, 0
        self.over = threading.Event()

    def note(self, done: int) -> None:
        self.done = done

    def watch(self) -> None:
        """Show what goes on until it is over; nothing if that is within a moment."""
        started = time.monotonic()
        if self.over.wait(QUIET_S):
            return
        with bars() as progress:
            if progress is None:
                self._write_lines(started)
                return
            task = progress.add_task("", total=self.total, note=self.what)
            while not self.over.wait(0.1):
                progress.update(task, completed=self.done)
            progress.remove_task(task)

    def _write_lines(self, started: float) -> None:
        say(f"{self.what} ...")
        while not self.over.wait(INTERVAL_S):
            seconds = time.monotonic() - started
            count = f"{self.done:,}" + (f" of {self.total:,}" if self.total else "")
            told = f"{count}, " if self.total or self.done else ""
            say(f"{self.what}: {told}{seconds:.0f} s")


def _progress(console: Any) -> Any:
    from rich import progress as rich
    from rich.text import Text

    class Count(rich.MofNCompleteColumn):
        """Nothing instead of `0/?` where the number is not known."""

        def render(self, task: Any) -> Text:
            return Text() if task.total is None else super().render(task)

    # Standard output is for results, which may go elsewhere. What is done leaves no line.
    return rich.Progress(
        rich.BarColumn(),
        Count(),
        rich.TextColumn("{task.fields[note]}"),
        rich.TimeRemainingColumn(),
        console=console,
        redirect_stdout=False,
    )

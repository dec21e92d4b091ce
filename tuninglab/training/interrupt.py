"""Ctrl-C and SIGTERM while training: finish the step, save, say how to go on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tuninglab.console import say
from tuninglab.run_folder import how_to_end


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying; a second SIGINT stops at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        say("Stopping after this step; Ctrl-C again stops at once, without saving.")

    # Python lets only the main thread handle signals.
    in_main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_stopped(run: Path, step: int) -> NoReturn:
    """Say where the run stands and how to go on.

    Raises:
        KeyboardInterrupt: always; the command line ends with 130 on it.
    """
    say(f"Stopped after step {step}; its state is saved in {run / 'checkpoints'}.")
    say(how_to_end(run))
    raise KeyboardInterrupt

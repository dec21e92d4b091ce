"""Several processes that work together, forked from this one: torch need not be imported anew."""

import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.state import AcceleratorState

from tuninglab.console import answer_main_process

PATIENCE_S = 240  # what hangs is killed then, and the test fails


class Ended(NamedTuple):
    """How a process ended: its exit code, and what it said."""

    code: int | None
    said: str


def begin(log: Path, environment: dict[str, Any]) -> None:
    """Make a forked process one that was started so, and that speaks into a file."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    AcceleratorState._reset_state(reset_partial_state=True)
    answer_main_process(None)
    file = open(log, "w", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file


def end(work: Callable[[], Any]) -> None:
    """Do work and end the process with 0, or what it exits with; nothing of pytest's ends here."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def forked(starts: list[Callable[[], None]], logs: list[Path]) -> list[Ended]:
    """Start each in a process of its own; how they ended, those that hang by being killed."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=start) for start in starts]
    for process in processes:
        process.start()
    latest = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(0.0, latest - time.monotonic()))
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
        process.join()
    said = [log.read_text() if log.exists() else "" for log in logs]
    assert not hung, f"{len(hung)} hang: " + "\n\n".join(text[-3000:] for text in said)
    return [Ended(p.exitcode, text) for p, text in zip(processes, said, strict=True)]


def in_world(size: int, work: Callable[[], Any], folder: Path) -> list[Ended]:
    """Do work in so many processes, as torchrun starts them.

    Args:
        size: how many.
        work: what each does.
        folder: for what they say.
    """
    port = free_port()
    logs = [folder / f"said-{size}-{rank}.txt" for rank in range(size)]

    def start(rank: int) -> Callable[[], None]:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        numbers |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

        def run() -> None:
            begin(logs[rank], numbers)
            end(work)

        return run

    return forked([start(rank) for rank in range(size)], logs)


def all_well(ended: list[Ended]) -> list[str]:
    """What processes said that all ended well."""
    codes = [process.code for process in ended]
    told = "\n\n".join(process.said[-2000:] for process in ended if process.code)
    assert not any(codes), f"{codes}: {told}"
    return [process.said for process in ended]

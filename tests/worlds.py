"""Several processes that work together, forked from this one: torch need not be imported anew."""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

PATIENCE_S = 120  # what hangs is killed then


def _run(work: Callable[..., Any], rank: int, size: int, port: int, log: Path, given: Any) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in (names | places).items()})
    AcceleratorState._reset_state(reset_partial_state=True)
    file = open(log, "w", buffering=1)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    code = 1
    try:
        work(*given)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        file.flush()
        # Nothing of pytest's is to end here.
        os._exit(code)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_world(size: int, work: Callable[..., Any], folder: Path, *given: Any) -> list[str]:
    """Do work in so many processes, as torchrun would start them; what each said.

    Args:
        size: how many.
        work: what each does; it ends well, or the test fails.
        folder: for what they say.
        given: to work.
    """
    context, port = multiprocessing.get_context("fork"), free_port()
    logs = [folder / f"said-{size}-{rank}.txt" for rank in range(size)]
    processes = [
        context.Process(target=_run, args=(work, rank, size, port, logs[rank], given))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(PATIENCE_S)
    finally:
        for process in processes:
            process.kill()
            process.join()
    said = [log.read_text() if log.exists() else "" for log in logs]
    codes = [process.exitcode for process in processes]
    assert codes == [0] * size, "\n".join(
        f"{c}: {text[-3000:]}" for c, text in zip(codes, said, strict=True)
    )
    return said

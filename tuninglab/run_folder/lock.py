"""Which process writes into a run folder: a file there names it, and another one is refused."""

import atexit
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tuninglab.errors import UserError
from tuninglab.run_folder.ownership import MARKER
from tuninglab.untrusted import read_json, shown

LOCK = ".lock"
LARGEST = 4096
PROCESSES = Path("/proc")


def take(folder: Path) -> None:
    """Write down that this process writes into a marked folder, until it ends or `release`s it.

    What a process left that is no more is passed over: on this host it is looked for by its number
    and the time of its start. Whether one on another host still runs cannot be seen from here.

    Raises:
        UserError: another process writes, by what can be known.
        OSError: the place cannot be written to.
    """
    path, this = folder / LOCK, _this_process()
    with _one_at_a_time(folder / MARKER):
        holder = _holder(path)
        if holder not in (None, this) and _may_run(holder):
            raise UserError(
                f"{folder} is being written by process {holder['pid']} on "
                f"{shown(holder['host'])}. Wait for it, stop it, or choose another --run_name. "
                f"If it is certain that it no longer runs, delete {path}."
            )
        path.unlink(missing_ok=True)
        # Exclusive: over a network file system others may come between.
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(this, file)
    # Whatever ends this process, short of a kill.
    atexit.register(release, folder)


def release(folder: Path) -> None:
    """Let others write into the folder; nothing if this process does not hold it."""
    with suppress(OSError):
        if _holder(folder / LOCK) == _this_process():
            (folder / LOCK).unlink()


@contextmanager
def _one_at_a_time(marker: Path) -> Iterator[None]:
    with open(marker, "r+b") as file:
        # The system lets go of it when a process dies. Where a file system has no such locks, the
        # exclusive creation is what remains.
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _holder(path: Path) -> Any:
    """Who wrote the lock; None if there is none, or a killed process left half of one."""
    try:
        held = read_json(path, LARGEST, "lock of the run")
    except UserError:
        return None
    whole = isinstance(held, dict) and isinstance(held.get("host"), str)
    return held if whole and isinstance(held.get("pid"), int) else None


def _may_run(holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname():
        return True
    pid = holder["pid"]
    if not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    # Numbers of processes come again, the time of start does not.
    return _started(pid) == holder.get("started")


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since the machine did; None where nothing tells.

    Of one that has ended, and that its parent has not asked about yet, it is empty.
    """
    try:
        # The name in parentheses may hold anything (proc(5)).
        fields = (PROCESSES / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2]
        return "" if fields.split()[0] in "ZX" else fields.split()[19]
    except (OSError, IndexError):
        return None

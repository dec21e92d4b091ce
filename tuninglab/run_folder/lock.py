"""Which process writes into a run folder: a file there names it, and another one is refused.

The process also keeps a lock of the system (flock) on that file, which ends with it, however it
ends. So what others see is certain where both have one kernel and one mount, in whatever
containers, and where the folder lies on a disk of this machine alone. Over a network a lock may
be seen by its own machine only: there one that is seen counts, and one that is not says nothing.
"""

import atexit
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from tuninglab.console import say
from tuninglab.disk import is_running
from tuninglab.errors import UserError
from tuninglab.run_folder.ownership import MARKER
from tuninglab.untrusted import read_json, shown

# Nobody, one that runs, one that has ended without letting go, one that nothing tells of from here.
Writer = Literal["none", "runs", "ended", "unseen"]

LOCK = ".lock"
LARGEST = 4096
PROCESSES = Path("/proc")
# File systems that one kernel at a time has mounted.
OF_ONE_MACHINE = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs", "overlay"}

# By path, the open locks of this process.
_held: dict[Path, int] = {}


def take(folder: Path) -> None:
    """Write down that this process writes into a marked folder, until it ends or `release`s it.

    What a process left that is no more is passed over. That is known by its lock, or on this host
    by its number and the time of its start; where neither can tell, it is taken to run.

    Raises:
        UserError: another process writes, by what can be known.
        OSError: the place cannot be written to.
    """
    path, this = folder / LOCK, _this_process()
    with _one_at_a_time(folder / MARKER):
        holder = _holder(path)
        own = holder is not None and this.items() <= holder.items()
        if own and path in _held:
            return
        # By its text it is another's now, whoever wrote that.
        _close(path)
        if holder is not None and not own:
            _check_ended(holder, path)
        if holder is not None and holder["host"] != this["host"]:
            say(f"Process {holder['pid']} on {shown(holder['host'])}, which wrote here, has ended.")
        path.unlink(missing_ok=True)
        # Exclusive: over a network file system others may come between.
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        this |= {"mount": _mount(folder), "locked": _lock(descriptor)}
        os.write(descriptor, json.dumps(this).encode())
    _held[path] = descriptor
    # Whatever ends this process, short of a kill.
    atexit.register(release, folder)


def _check_ended(holder: dict[str, Any], path: Path) -> None:
    runs = _runs(holder, path)
    if runs is False:
        return
    remedy = (
        "Wait for it, stop it, or choose another --run_name."
        if runs
        else "Whether it still does cannot be seen from here. Choose another --run_name; or, if it "
        f"is certain that it no longer runs, delete {path}."
    )
    who = f"process {holder['pid']} on {shown(holder['host'])}"
    raise UserError(f"{path.parent} is being written by {who}. {remedy}")


def release(folder: Path) -> None:
    """Let others write into the folder; nothing if this process does not hold it."""
    path = folder / LOCK
    with suppress(OSError):
        holder = _holder(path)
        if holder is not None and _this_process().items() <= holder.items():
            path.unlink()
    _close(path)


def writer_of(folder: Path) -> Writer:
    """Whether a process writes into a folder, for those who only look on."""
    path = folder / LOCK
    holder = _holder(path)
    if holder is None:
        return "none"
    # By its number first: who tries the lock of the system holds it for a moment, in which the
    # process that it belongs to would be refused.
    started = holder.get("started") or ""
    if holder["host"] == socket.gethostname() and started == (_started(holder["pid"]) or None):
        return "runs"
    runs = _runs(holder, path)
    return "unseen" if runs is None else "runs" if runs else "ended"


def _close(path: Path) -> None:
    if path in _held:
        os.close(_held.pop(path))


def _forget() -> None:
    """In a child that was forked: a worker that outlives its run must not hold the lock of it."""
    while _held:
        os.close(_held.popitem()[1])


os.register_at_fork(after_in_child=_forget)


@contextmanager
def _one_at_a_time(marker: Path) -> Iterator[None]:
    with open(marker, "r+b") as file:
        # The system lets go of it when a process dies. Where a file system has no such locks, the
        # exclusive creation is what remains.
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _lock(descriptor: int) -> bool | None:
    """Take the lock of the system; False: another process has it, None: there are none here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _mount(folder: Path) -> str | None:
    """The start of this kernel and the mount that a folder is in; None where nothing tells."""
    try:
        boot = (PROCESSES / "sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {folder.stat().st_dev}"
    except (OSError, UnicodeError):
        return None


def _holder(path: Path) -> Any:
    """Who wrote the lock; None if there is none, or a killed process left half of one."""
    try:
        held = read_json(path, LARGEST, "lock of the run")
    except UserError:
        return None
    whole = isinstance(held, dict) and isinstance(held.get("host"), str)
    return held if whole and isinstance(held.get("pid"), int) else None


def _runs(holder: dict[str, Any], path: Path) -> bool | None:
    """Whether the process that wrote a lock still runs; None: that cannot be seen from here."""
    free = None
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            free = _lock(descriptor)
        finally:
            os.close(descriptor)
    if free is False:
        return True
    seen = holder.get("mount") == (_mount(path.parent) or "")
    if free and holder.get("locked") is True and (seen or _is_of_this_machine(path.parent)):
        return False
    if holder["host"] != socket.gethostname():
        return None
    pid = holder["pid"]
    if not is_running(pid):
        return False
    # Numbers of processes come again, the time of start does not.
    started = _started(pid)
    return None if started is None else started == holder.get("started")


def _is_of_this_machine(folder: Path) -> bool:
    """Whether no other machine can write into a folder, by the file system that it is in."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = (PROCESSES / "self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    # proc(5): ID, parent, device ... - kind, source, options.
    kinds = {line.rpartition(" - ")[2].split()[0] for line in lines if line.split()[2] == number}
    return bool(kinds) and kinds <= OF_ONE_MACHINE


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

"""Processes that work on a folder and are killed: forked from a warm one, in a group of their own.

Nothing in the package knows of it: Python tells of every file that is opened, moved or deleted
(audit events), and of the work in between a few functions are wrapped.
"""

import faulthandler
import os
import random
import re
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# What a start does, in this order, by which file of the run folder is touched. "step" and
# "validation" are told by wrapped functions, "anywhere" is a time.
FILES = {
    "start": r"\.?(config\.yaml|fingerprints\.json|trainable\.json|environment\.json|base|\.lock"
    r"|\.tuninglab)\b.*|\.|\.\./[^/]+\.features\b.*",
    "prune": r"checkpoints/\.step-\d+\.old\b.*",
    "save": r"checkpoints/(\.step-\d+\.writing\b.*|step-\d+.*)",
    "metrics": r"\.?metrics\.jsonl\b.*",
    "adapter": r"\.?adapter\b.*",
    "answers": r"\.?(asked\.json|predictions\.jsonl)\b.*",
    "report": r"\.?(answers\.json|pictures|loss\.png|report\.(json|html))\b.*",
}
ANYWHERE = "anywhere"
MOMENTS = ("start", "step", "save", "validation", "metrics", "prune", "adapter", "report", ANYWHERE)
PATIENCE_S = 300


@dataclass(frozen=True)
class Kill:
    """When a process group kills itself.

    Args:
        moment: one of MOMENTS.
        number: at which event of it; of "anywhere", after how many seconds.
        torn: whether files that are being written are cut to a half before.
    """

    moment: str
    number: float
    torn: bool = False


@dataclass(frozen=True)
class Ended:
    """How a start ended.

    Args:
        killed: whether by the kill; else all went well.
        said: to standard error and output.
        seconds: it took.
        events: by moment, how many there were.
    """

    killed: bool
    said: str
    seconds: float
    events: Counter


def start(
    work: Callable[[], object],
    folder: Path,
    log: Path,
    kill: Kill | None = None,
    processes: int = 1,
) -> Ended:
    """Work that writes into `folder`, in so many processes, until they have ended or are killed.

    Raises:
        AssertionError: the work failed, or took minutes.
    """
    begun = time.perf_counter()
    reading, writing = os.pipe()
    port = _free_port()
    leader = os.fork()
    if leader == 0:
        os.close(reading)
        os.setsid()
        _lead(work, folder, log, kill, processes, port)
    os.close(writing)
    after = kill.number if kill and kill.moment == ANYWHERE else PATIENCE_S
    # Its end is that of the last process, loaders of data and all: each holds the other end.
    ended = select.select([reading], [], [], after)[0]
    if not ended:
        os.killpg(leader, signal.SIGKILL)
        select.select([reading], [], [], PATIENCE_S)
    os.close(reading)
    status = os.waitpid(leader, 0)[1]
    said = log.read_text(errors="replace")
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, f"exit {os.waitstatus_to_exitcode(status)}: {said[-4000:]}"
    assert not killed or kill is not None, f"it hangs: {said[-4000:]}"
    counted = Counter(re.findall(r"^event: (\w+)$", said, re.M))
    return Ended(killed, said, time.perf_counter() - begun, counted)


def _lead(work, folder, log, kill, processes, port) -> None:
    """In the first process of the group: fork the others, or work alone."""
    code = 1
    try:
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
        for number in (1, 2):
            os.dup2(output, number)
        sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)
        # pytest's own would be in the parent's streams.
        with suppress(Exception):
            faulthandler.enable(sys.stderr)
        if processes == 1:
            code = _work(work, folder, kill)
        else:
            ranks = [_fork_rank(work, folder, kill, n, processes, port) for n in range(processes)]
            code = _wait_for(ranks)
    finally:
        os._exit(code)


def _wait_for(ranks: list[int]) -> int:
    """The first exit code that is none of success, after which the others are ended; else 0."""
    code = 0
    while ranks:
        pid, status = os.wait()
        ranks.remove(pid)
        if status and not code:
            code = abs(os.waitstatus_to_exitcode(status))
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return code


def _fork_rank(work, folder, kill, rank: int, processes: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        numbers = {"RANK": rank, "LOCAL_RANK": rank}
        numbers |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update(address, **{name: str(value) for name, value in numbers.items()})
        # Files are the first one's; of the work it may be either that dies.
        mine = kill and (rank == 0) == (kill.moment not in ("step", "validation"))
        code = _work(work, folder, kill if mine else None)
    finally:
        os._exit(code)


def _work(work: Callable[[], object], folder: Path, kill: Kill | None) -> int:
    import traceback

    from accelerate.state import AcceleratorState

    from tuninglab.console import answer_main_process

    # As in a process that was just started.
    AcceleratorState._reset_state(True)
    answer_main_process(None)
    events = Events(folder, kill)
    events.watch()
    try:
        work()
    except BaseException:
        traceback.print_exc()
        return 1
    if os.environ.get("RANK", "0") == "0":
        for moment in events.counted.elements():
            print(f"event: {moment}")
    return 0


class Events:
    """Counts what a process does, and kills its group at one of the events."""

    def __init__(self, folder: Path, kill: Kill | None):
        self.counted: Counter[str] = Counter()
        self._folder, self._kill, self._root = folder, kill, os.path.abspath(folder)
        self._pid, self._deleted = os.getpid(), ""

    def watch(self) -> None:
        """From now on, for the rest of the process."""
        from tuninglab.training import loop

        for name, moment in (("optimizer_step", "step"), ("validation_line", "validation")):
            setattr(loop, name, self._told(getattr(loop, name), moment))
        sys.addaudithook(self._hear)

    def _told(self, function: Callable, moment: str) -> Callable:
        def call(*args, **options):
            self._note(moment)
            return function(*args, **options)

        return call

    def _hear(self, event: str, args: tuple) -> None:
        # Loaders of data are children, with the same hook.
        if event not in CHANGES or os.getpid() != self._pid:
            return
        if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        several = 2 if event == "os.rename" else 1
        paths = [os.fspath(a) for a in args[:several] if isinstance(a, (str, os.PathLike))]
        if event == "shutil.rmtree":
            self._deleted = paths[0]
        # Inside of it, names stand alone.
        paths = [path if os.path.isabs(path) else self._deleted for path in paths]
        inside = [os.path.relpath(path, self._root) for path in paths if path]
        for moment, pattern in FILES.items():
            if any(re.fullmatch(pattern, path) for path in inside):
                self._note(moment)
                return

    def _note(self, moment: str) -> None:
        self.counted[moment] += 1
        kill = self._kill
        if kill and (kill.moment, kill.number) == (moment, self.counted[moment]):
            self._kill = None
            if kill.torn:
                tear(self._folder, moment)
            os.killpg(0, signal.SIGKILL)
            time.sleep(60)


CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate"}


def tear(folder: Path, moment: str) -> None:
    """Leave of the file that is being written its half, of a line of metrics its beginning."""
    beside = [p for p in folder.rglob("*") if ".writing" in str(p) and p.is_file()]
    for path in sorted(beside, key=lambda p: p.stat().st_mtime_ns)[-1:]:
        os.truncate(path, path.stat().st_size // 2)
    if moment == "metrics":
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"step": 3, "epo')


def draw(moment: str, events: Counter, seconds: float, chance: random.Random) -> Kill:
    """A kill at a moment, drawn from what a whole run did; it took so many seconds."""
    if moment == ANYWHERE:
        return Kill(moment, chance.uniform(0.05, 0.95) * seconds)
    most = max(1, events[moment])
    return Kill(moment, chance.randint(1, most), chance.random() < 0.5)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]

"""How many threads compute, and how they wait for each other; torch is not needed to decide."""

import math
import os
import threading
import time
from collections.abc import MutableMapping
from pathlib import Path
from statistics import median
from typing import Any

from tuninglab.console import say

CGROUP = Path("/sys/fs/cgroup")
LOAD = Path("/proc/loadavg")
TASKS = Path("/proc/self/task")

# What OpenMP's runtimes (GNU's, which torch's wheels bring, Intel's and LLVM's) read on waiting.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def set_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Decide whether threads that wait for others spin or sleep; must come before torch is loaded.

    Whoever set something of the kind in the environment is left to it.
    """
    # torch 2.13's wheels for CPUs bring libgomp, whose threads spin for some milliseconds at every
    # barrier while the one that they wait for may have no core. Medians of a step of the demo
    # (batch 16) on 2 cores, in s: spinning without end, 10,000 times, asleep, one thread
    #   idle machine               0.25   0.23-0.29   0.38   0.32
    #   one busy loop beside it      -    1.0         0.39   0.42
    #   two other trainings        9.0    0.55        0.59   0.37
    # Asleep costs half as much again where nothing else runs, a little spinning nothing; beside
    # other work only sleep is safe. What begins later is seen by `Sleep`, and told (BusyWatch).
    if any(name in environment for name in WAITING):
        return
    if other_work():
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        environment["GOMP_SPINCOUNT"] = "10000"


def allowed_cpus() -> int | None:
    """CPUs that this container may use at a time, where it has a quota; OpenMP counts all.

    A container of 2 CPUs on a machine of 64 would start 64 threads, which are then throttled.
    """
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = (
                (CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text().strip()
                for name in ("quota", "period")
            )
        except OSError:
            return None
    # No quota is "max" in the second edition and -1 in the first.
    return max(1, math.floor(int(quota) / int(period))) if quota.isdigit() else None


def other_work(own: int = 0) -> str:
    """What shows that other programs want the CPUs too; empty if nothing does.

    Args:
        own: threads of this run that computed during the last minute.
    """
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    # A minute's mean also tells of what has ended: something must run now, too. This thread is
    # the only one of this run that does, as long as it asks.
    busy = load - own >= 1 and load + 1 > cpus and _running() >= 1
    return f"load {load:.1f} on {cpus} CPU{'s' * (cpus > 1)}" if busy else ""


def _running() -> float:
    """How many others run at this moment; unknown (macOS) counts as many."""
    try:
        # "1.07 0.94 0.90 3/77 4711": running now, this process included, of all (proc(5)).
        return float(LOAD.read_text().split()[3].partition("/")[0]) - 1
    except (OSError, IndexError, ValueError):
        return math.inf


class Sleep:
    """Takes the lines of metrics.jsonl; threads of OpenMP wait asleep while others want the CPUs.

    GNU's runtime lets a waiting thread spin a hundredth as long while the process has more threads
    than there are CPUs, counted over the teams of all who ever opened one, and asks anew at each
    wait. So an idle team beside the one that computes changes how threads wait, and nothing of what
    they compute. On 2 cores, beside a busy loop, a step takes 1.9 times as long as alone, not 4
    times (benchmarks/busy_machine.py). Other runtimes take no notice.

    Args:
        threads: of this process that compute.
    """

    WINDOW_S = 0.5
    # Share of their time for which threads that could run waited for a CPU: 0.01 on a quiet
    # machine, 0.25 and more beside one busy loop on 2 cores. Workers that load data need some, too.
    BUSY, QUIET, QUIET_WINDOWS = 0.15, 0.05, 5

    def __init__(self, threads: int):
        self.threads = threads
        self.began, self.waited_s = time.monotonic(), waited_s()
        self.busy_windows = self.quiet_windows = 0
        self.awake: threading.Event | None = None
        self.told = False

    def __enter__(self) -> "Sleep":
        return self

    def __exit__(self, *_: object) -> None:
        self.wake()

    def __call__(self, line: dict[str, Any]) -> None:
        """Look at what happened since the last line, if that was long enough."""
        now, waited = time.monotonic(), waited_s()
        if now - self.began < self.WINDOW_S:
            return
        share = (waited - self.waited_s) / (now - self.began) / self.threads
        self.began, self.waited_s = now, waited
        self.busy_windows = self.busy_windows + 1 if share > self.BUSY else 0
        self.quiet_windows = self.quiet_windows + 1 if share < self.QUIET else 0
        if self.busy_windows >= 2:
            self.fall_asleep()
        elif self.quiet_windows >= self.QUIET_WINDOWS:
            self.wake()

    def fall_asleep(self) -> None:
        """From now on threads wait asleep; said the first time."""
        if self.awake is not None:
            return
        awake, opened = threading.Event(), threading.Event()
        threading.Thread(target=_open_team, args=(opened, awake), daemon=True).start()
        opened.wait()
        self.awake = awake
        if not self.told:
            self.told = True
            say("Other work takes this run's CPUs: its threads wait for each other asleep.")

    def wake(self) -> None:
        """From now on they spin again, as they did first."""
        if self.awake is not None:
            self.awake.set()
            self.awake = None


def _open_team(opened: threading.Event, awake: threading.Event) -> None:
    """Open a team of threads of its own; it ends with this thread."""
    import torch  # loaded long before: a run is under way

    torch.ones(1 << 20).add_(1)
    opened.set()
    awake.wait()


def waited_s() -> float:
    """Seconds that threads of this process were ready to run and had no CPU; 0 if unknown."""
    total_ns = 0
    # A thread may end while it is looked at; only Linux tells (proc(5), schedstat).
    for task in TASKS.glob("*"):
        try:
            total_ns += int((task / "schedstat").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue
    return total_ns / 1e9


class BusyWatch:
    """Takes the lines of metrics.jsonl, and says once if other programs slow the steps down.

    Args:
        own: threads of this run that compute, with those that load its data.
    """

    EVERY = 20

    def __init__(self, own: int):
        self.own = own
        self.seconds: list[float] = []
        self.told = False

    def __call__(self, line: dict[str, Any]) -> None:
        """Look around at every twentieth step, and where a step took twice the usual time."""
        if "step_s" not in line or self.told:
            return
        slow = len(self.seconds) > 3 and line["step_s"] > 2 * median(self.seconds)
        self.seconds = [*self.seconds[-self.EVERY :], line["step_s"]]
        if slow or line["step"] % self.EVERY == 0:
            self.told = tell_other_work(self.own)


def tell_other_work(own: int = 0) -> bool:
    """Say what to do about other programs on this machine, if there are any; whether it was."""
    if seen := other_work(own):
        say(f"Other work runs on this machine ({seen}): if steps are slow, try --threads 1.")
    return bool(seen)

"""How many threads compute, why, and what is said where other programs want the CPUs too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tuninglab import threads
from tuninglab.console import Choices
from tuninglab.threads import BusyWatch, Sleep, allowed_cpus, other_work, set_waiting, waited_s
from tuninglab.training import hardware

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, tmp_path):
    """Numbers of threads and CPUs that do not depend on this machine."""
    before = torch.get_num_threads()
    monkeypatch.setattr(hardware, "_before", None)
    monkeypatch.setattr(threads, "CGROUP", tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def busy(monkeypatch, tmp_path, load, running, cpus=2):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    (tmp_path / "loadavg").write_text(f"{load} {load} {load} {running}/77 4711\n")
    monkeypatch.setattr(threads, "LOAD", tmp_path / "loadavg")


@pytest.mark.parametrize(
    ("load", "running", "expected"),
    [(0.1, 1, {"GOMP_SPINCOUNT": "10000"}), (3.0, 3, {"OMP_WAIT_POLICY": "PASSIVE"})],
)
def test_waiting_threads_sleep_beside_other_work(monkeypatch, tmp_path, load, running, expected):
    busy(monkeypatch, tmp_path, load, running)
    environment = {}
    set_waiting(environment)
    assert environment == expected


def test_a_wish_of_the_user_stands():
    for name, value in (
        ("OMP_WAIT_POLICY", "ACTIVE"),
        ("GOMP_SPINCOUNT", "9"),
        ("KMP_BLOCKTIME", "0"),
    ):
        own = {name: value}
        set_waiting(own)
        assert own == {name: value}


def test_a_verb_sets_it_before_torch_is_loaded(tmp_path):
    root = Path(__file__).resolve().parents[1]
    start = """
import os, sys
from tuninglab import cli

def stop(name):
    print("torch" in sys.modules, bool({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & {*os.environ}))
    sys.exit()

cli.import_module = stop
cli.VERBS["chat"].run(None)
"""
    done = subprocess.run(
        [sys.executable, "-c", start],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(root)},
    )
    assert done.stdout == "False True\n", done.stderr


def chosen(asked):
    choices = Choices()
    hardware.choose_threads(asked, CPU, choices)
    (made,) = choices.made
    assert made["choice"] == "threads" and made["value"] == str(torch.get_num_threads())
    return torch.get_num_threads(), made["reason"]


def test_the_number_and_its_reason(monkeypatch, tmp_path):
    busy(monkeypatch, tmp_path, load=0.0, running=1)
    assert chosen(1) == (1, "--threads")
    # What one run asked for is not what the next one gets.
    assert chosen(None) == (2, "torch's default, one for each core")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert chosen(None) == (1, "as many CPUs as this container may use")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    assert chosen(None) == (2, "OMP_NUM_THREADS in the environment")


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_the_quota_of_a_container(files, allowed, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert allowed_cpus() == allowed


@pytest.mark.parametrize(
    ("load", "running", "cpus", "own", "seen"),
    [
        (0.3, 1, 2, 0, ""),
        (4.3, 5, 2, 0, "load 4.3 on 2 CPUs"),
        # What ended a moment ago: nothing runs now but this process.
        (4.3, 1, 2, 0, ""),
        # This run's own threads.
        (2.9, 4, 2, 3, ""),
        (5.0, 4, 2, 3, "load 5.0 on 2 CPUs"),
        # There are CPUs for all.
        (4.0, 9, 64, 0, ""),
    ],
)
def test_other_work_is_seen(monkeypatch, tmp_path, load, running, cpus, own, seen):
    busy(monkeypatch, tmp_path, load, running, cpus)
    assert other_work(own) == seen


def test_at_the_start_of_a_run(monkeypatch, tmp_path, capsys):
    busy(monkeypatch, tmp_path, load=4.3, running=5)
    chosen(None)
    assert "Other work runs on this machine (load 4.3 on 2 CPUs)" in capsys.readouterr().err
    chosen(2)
    assert "Other work" not in capsys.readouterr().err


def test_during_a_run_it_is_said_once_and_of_slow_steps_at_once(monkeypatch, tmp_path, capsys):
    busy(monkeypatch, tmp_path, load=0.5, running=3)
    watch = BusyWatch(own=2)
    for step in range(1, 25):
        watch({"step": step, "step_s": 0.5})
    watch({"step": 24, "val_loss": 1.0})
    assert capsys.readouterr().err == ""
    busy(monkeypatch, tmp_path, load=6.0, running=6)
    watch({"step": 25, "step_s": 0.6})
    assert capsys.readouterr().err == ""
    watch({"step": 26, "step_s": 1.6})
    assert capsys.readouterr().err.count("try --threads 1") == 1
    for step in range(27, 50):
        watch({"step": step, "step_s": 3.0})
    assert capsys.readouterr().err == ""


def lines(sleep, monkeypatch, shares, seconds=1.0):
    """Show `sleep` a line every so many seconds, in which 2 threads waited for that share."""
    for share in shares:
        now, waited = sleep.began + seconds, sleep.waited_s + 2 * share * seconds
        monkeypatch.setattr(threads.time, "monotonic", lambda now=now: now)
        monkeypatch.setattr(threads, "waited_s", lambda waited=waited: waited)
        sleep({"step": 1, "step_s": 0.1})


def test_threads_sleep_while_others_take_the_cpus(monkeypatch, capsys):
    with Sleep(2) as sleep:
        lines(sleep, monkeypatch, [0.01, 0.1, 0.1, 0.4, 0.1])
        assert sleep.awake is None and capsys.readouterr().err == ""
        lines(sleep, monkeypatch, [0.3, 0.3])
        assert sleep.awake is not None and capsys.readouterr().err.count("asleep") == 1
        lines(sleep, monkeypatch, [0.3, 0.1, 0.01, 0.01, 0.01, 0.01, 0.2, 0.01])
        assert sleep.awake is not None
        lines(sleep, monkeypatch, [0.01] * 4)
        assert sleep.awake is None
        lines(sleep, monkeypatch, [0.3, 0.3])
        assert sleep.awake is not None and capsys.readouterr().err == ""
    assert sleep.awake is None


def test_short_steps_are_looked_at_together(monkeypatch):
    sleep = Sleep(2)
    began = sleep.began
    monkeypatch.setattr(threads, "waited_s", lambda: sleep.waited_s + 1)
    monkeypatch.setattr(threads.time, "monotonic", lambda: began + 0.1)
    for _ in range(9):
        sleep({"step": 1})
    assert sleep.began == began and sleep.busy_windows == 0


@pytest.mark.skipif(not threads.TASKS.is_dir(), reason="only Linux tells of threads")
def test_an_idle_team_is_what_makes_them_sleep_and_it_goes_again():
    torch.ones(1 << 20).add_(1)  # this thread's own team
    # By their numbers: threads that tests before have left may end meanwhile.
    before = set(threads.TASKS.iterdir())
    with Sleep(2) as sleep:
        sleep.fall_asleep()
        team = set(threads.TASKS.iterdir()) - before
        # The thread that opened it, and at least one of OpenMP's.
        assert len(team) >= 2
    for _ in range(100):
        if not team & set(threads.TASKS.iterdir()):
            break
        threads.time.sleep(0.05)
    assert not team & set(threads.TASKS.iterdir())


@pytest.mark.skipif(not threads.TASKS.is_dir(), reason="only Linux tells of threads")
def test_the_time_for_which_threads_had_no_cpu(tmp_path, monkeypatch):
    assert 0 <= waited_s() <= waited_s()
    for name, text in (("1", "5 2000000000 3\n"), ("2", "5 500000000 3\n"), ("3", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "schedstat").write_text(text)
    monkeypatch.setattr(threads, "TASKS", tmp_path)
    assert waited_s() == 2.5
    monkeypatch.setattr(threads, "TASKS", tmp_path / "nowhere")
    assert waited_s() == 0

"""Whose a run folder is, and who writes into it: nothing of the user's goes, no two runs mix."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tuninglab.config import FinetuneConfig
from tuninglab.errors import UserError
from tuninglab.run_folder import RunFolder, lock, ownership
from tuninglab.run_folder.ownership import note_base


@pytest.fixture
def config(tmp_path) -> FinetuneConfig:
    return FinetuneConfig(output_dir=str(tmp_path), run_name="a")


def made(config: FinetuneConfig) -> RunFolder:
    run = RunFolder.plan(config)
    run.create(config)
    run.release()
    return run


def put(folder: Path, *places: str) -> None:
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text("mine")


def everything(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def test_overwrite_deletes_all_that_a_run_wrote(config):
    run = made(config)
    kept = ("base/model.safetensors", "base/tokenizer.json")
    put(run.path, *kept)
    note_base(run.path, run.path / "base")
    put(run.path, "pictures/003.png", "adapter/adapter_config.json", "report.json", "loss.png")
    put(run.path, "checkpoints/step-000002/state.pt", "checkpoints/step-000002/manifest.json")
    put(run.path, "checkpoints/.step-000003.writing/state.pt", ".adapter.old/adapter_config.json")
    put(run.path, "checkpoints/step-000002/adapter/adapter_model.safetensors", ".base.writing/x")
    made(replace(config, overwrite=True))
    assert everything(run.path) == {".tuninglab", "config.yaml"}
    # A run without a new base wrote none.
    put(run.path, *kept)
    with pytest.raises(UserError, match="base/model.safetensors"):
        RunFolder.plan(replace(config, overwrite=True))


@pytest.mark.parametrize(
    "place",
    [
        *("pictures/holiday.jpg", "base/thesis.tex", "adapter/notes.txt"),
        *(
            "checkpoints/mine/state.pt",
            "checkpoints/step-000001/notes",
            "pictures/deep/000.png",
            "checkpoints/notes",
        ),
    ],
)
def test_what_no_run_wrote_is_named_and_stays(config, place):
    run = made(config)
    put(run.path, "pictures/000.png", "report.json", place)
    before = everything(run.path)
    with pytest.raises(UserError, match=f"no run wrote: {place}. Nothing was deleted"):
        RunFolder.plan(replace(config, overwrite=True))
    assert everything(run.path) == before


def test_a_link_in_the_place_of_a_folder_stays(config, tmp_path):
    run = made(config)
    put(tmp_path, "photos/000.png")
    (run.path / "pictures").symlink_to(tmp_path / "photos")
    with pytest.raises(UserError, match="no run wrote: pictures"):
        RunFolder.plan(replace(config, overwrite=True))
    assert (tmp_path / "photos" / "000.png").exists()


@pytest.mark.parametrize("content", ["title: my thesis\n", "a: 1\nrecipe: finetune\n", "- x\n"])
def test_a_foreign_settings_file_makes_no_run_folder(config, tmp_path, content):
    put(tmp_path / "a", "pictures/holiday.jpg", "base/thesis.tex", "report.json")
    (tmp_path / "a" / "config.yaml").write_text(content)
    before = everything(tmp_path / "a")
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.plan(replace(config, overwrite=True))
    assert everything(tmp_path / "a") == before


@pytest.mark.parametrize("written", ["config.yaml", ".config.yaml.writing"])
@pytest.mark.parametrize("cut", [0, 5, 40])
def test_half_a_settings_file_is_no_dead_end(config, tmp_path, written, cut):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / written).write_text("recipe: finetune\nmodel: embedded\n"[:cut])
    with pytest.raises(UserError, match="--overwrite"):
        RunFolder.plan(config)
    made(replace(config, overwrite=True))
    assert everything(tmp_path / "a") == {".tuninglab", "config.yaml"}


@pytest.mark.parametrize("moment", range(12))
def test_killed_while_clearing_a_run_is_no_dead_end(config, monkeypatch, moment):
    run = made(config)
    put(run.path, "pictures/000.png", "adapter/adapter_config.json", "report.json", "loss.png")
    calls = []

    class Killed(BaseException):
        pass

    def counted(original):
        def call(*args, **options):
            calls.append(0)
            if len(calls) > moment:
                raise Killed
            return original(*args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", counted(Path.unlink))
        patch.setattr(ownership, "remove_folder", counted(ownership.remove_folder))
        try:
            made(replace(config, overwrite=True))
        except Killed:
            pass
    made(replace(config, overwrite=True))
    assert everything(run.path) == {".tuninglab", "config.yaml"}


def another_process(*words: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *words])


def held_by(folder: Path, **holder) -> None:
    (folder / ".lock").write_text(json.dumps(holder))


def test_a_run_that_is_written_is_refused_by_who_writes(config):
    run = made(config)
    other = another_process()
    try:
        held = {"host": socket.gethostname(), "pid": other.pid, "started": lock._started(other.pid)}
        held_by(run.path, **held)
        message = f"being written by process {other.pid} on {socket.gethostname()}"
        with pytest.raises(UserError, match=message):
            run.hold()
        with pytest.raises(UserError, match=message):
            made(replace(config, overwrite=True))
        # Another process of that number.
        held_by(run.path, **(held | {"started": "1"}))
        run.hold()
        held_by(run.path, **held)
        other.send_signal(signal.SIGKILL)
        # Nobody has waited for it yet.
        while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        run.hold()
    finally:
        other.kill()
        other.wait()
    held_by(run.path, **held)
    run.hold()
    run.hold()
    assert json.loads((run.path / ".lock").read_text())["pid"] == os.getpid()
    run.release()
    assert not (run.path / ".lock").exists()


@pytest.mark.parametrize(
    "content", ["", '{"host"', "[]", '{"host": null, "pid": 1}', '{"pid": -1}', '{"pid": "x"}']
)
def test_a_damaged_lock_is_no_dead_end(config, content):
    run = made(config)
    here = json.dumps(socket.gethostname())
    content = content.replace('{"pid"', f'{{"host": {here}, "pid"')
    (run.path / ".lock").write_text(content)
    run.hold()
    run.release()


def test_a_run_on_another_host_is_believed_and_the_way_out_is_said(config):
    run = made(config)
    held_by(run.path, host="elsewhere", pid=1, started="2")
    with pytest.raises(UserError, match=r"on elsewhere.*no longer runs, delete .*\.lock"):
        run.hold()


# Takes the lock of a run as a process on another host would, says so, and forks a worker.
HOLDS = """
import os, socket, sys, time
from pathlib import Path
socket.gethostname = lambda: "elsewhere"
from tuninglab.run_folder import lock
lock.take(Path(sys.argv[1]))
if os.fork() == 0:
    print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture
def container(config):
    """A run that a process in another container writes into; its worker outlives it."""
    run = made(config)
    command = [sys.executable, "-c", HOLDS, str(run.path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert other.stdout is not None and other.stdout.readline() == "taken\n"
    yield run, other
    os.killpg(other.pid, signal.SIGKILL)
    other.wait()


def test_the_lock_of_another_container_ends_with_its_process(container, capsys):
    run, other = container
    with pytest.raises(UserError, match=f"written by process {other.pid} on elsewhere"):
        run.hold()
    other.kill()
    other.wait()
    run.hold()
    assert f"Process {other.pid} on elsewhere, which wrote here, has ended." in (
        capsys.readouterr().err
    )
    run.release()


def rewrite(run: RunFolder, **changes) -> None:
    """Change the text of a lock in place: the lock of the system on the file stays."""
    path = run.path / ".lock"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", ["ext4", "overlay", "nfs4", "9p", "fuse.sshfs"])
def test_after_a_restart_a_lock_is_stale_where_no_other_machine_can_write(
    container, tmp_path, monkeypatch, kind
):
    run, other = container
    rewrite(run, mount="another kernel 5")
    device = run.path.stat().st_dev
    lines = [
        "20 1 0:20 / /proc rw,relatime - proc proc rw",
        f"6 1 {os.major(device)}:{os.minor(device)} / / rw shared:1 - {kind} /dev/x rw",
    ]
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "mountinfo").write_text("\n".join(lines))
    monkeypatch.setattr(lock, "PROCESSES", tmp_path / "proc")
    # Alive, whatever its text says: its lock is seen.
    for host in ("elsewhere", socket.gethostname()):
        rewrite(run, host=host, pid=2**30)
        with pytest.raises(UserError, match=f"on {host}"):
            run.hold()
    rewrite(run, host="elsewhere")
    other.kill()
    other.wait()
    if kind in ("ext4", "overlay"):
        run.hold()
        run.release()
        return
    with pytest.raises(UserError, match=r"on elsewhere.*no longer runs, delete"):
        run.hold()


@pytest.mark.parametrize("left", ["mount", "locked"])
def test_a_lock_that_nothing_tells_of_is_believed(container, left):
    run, other = container
    other.kill()
    other.wait()
    rewrite(run, **{left: None})
    if left == "locked":
        with pytest.raises(UserError, match="on elsewhere"):
            run.hold()
    else:
        run.hold()
        run.release()


def test_where_there_are_no_locks_of_the_system_the_text_is_what_counts(config, monkeypatch):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    monkeypatch.setattr(lock.fcntl, "lockf", none)
    run = made(config)
    run.hold()
    assert json.loads((run.path / ".lock").read_text())["locked"] is None
    run.release()
    assert not (run.path / ".lock").exists()
    mount = lock._mount(run.path)
    held_by(run.path, host="elsewhere", pid=1, started="2", locked=True, mount=mount)
    with pytest.raises(UserError, match="on elsewhere"):
        run.hold()


def test_two_that_planned_the_same_name_do_not_share_it(config):
    first, second = RunFolder.plan(config), RunFolder.plan(config)
    first.create(config)
    with pytest.raises(UserError, match="exists"):
        second.create(config)
    first.release()
    # One that was there before, which both want to replace.
    config = replace(config, overwrite=True)
    second = RunFolder.plan(config)
    held_by(second.path, host="elsewhere", pid=1, started="2")
    with pytest.raises(UserError, match="being written"):
        second.create(config)


def test_names_that_are_made_up_do_not_collide(config, tmp_path):
    config.run_name = None
    runs = [RunFolder.plan(config) for _ in range(3)]
    for run in runs:
        run.create(config)
    assert [run.path.name for run in runs] == ["run_1", "run_2", "run_3"]
    names = [(tmp_path / f"run_{k}" / "config.yaml").read_text() for k in (1, 2, 3)]
    assert all(f"run_name: run_{k}\n" in text for k, text in enumerate(names, 1))


def test_metrics_that_are_gone_or_damaged_are_named(config):
    run = made(config)
    path = run.path / "metrics.jsonl"
    lines = ['{"step": 1}', '{"step": 2}', '{"step": 3}']
    for damaged in (b"\xff\xfe\n", b'{"step": "2"}\n{"step": 2}\n', b"{}\n\n{}\n", b"[" * 9000):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="metrics.jsonl"):
            run.cut_metrics(2, 2)
    path.write_text("\n".join(lines[:1]))
    with pytest.raises(UserError, match='lacks step 2.*write {"step": 2} into it'):
        run.cut_metrics(2, 2)
    path.unlink()
    with pytest.raises(UserError, match="gone or damaged"):
        run.cut_metrics(2, 2)
    run.cut_metrics(2, 0)
    os.mkfifo(path)
    with pytest.raises(UserError, match="pipe"):
        run.cut_metrics(2, 2)
    path.unlink()
    path.write_text("\n".join(lines))
    run.cut_metrics(2, 2)
    assert path.read_text() == "\n".join(lines[:2]) + "\n"


def test_settings_of_the_run_that_are_none_are_named(config):
    run = made(config)
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("lora_dropout: 0.0", "lora_dropout: 2147483648.0"))
    with pytest.raises(UserError, match="config.yaml: --tuning_config.lora_dropout"):
        run.resumed_config(replace(config, resume=True))


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant"])
def test_a_new_end_says_that_rates_are_planned_anew(config, scheduler, capsys):
    run = made(replace(config, lr_scheduler=scheduler, max_steps=5))
    run.resumed_config(replace(config, resume=True, max_steps=5))
    assert capsys.readouterr().err == ""
    run.resumed_config(replace(config, resume=True, max_steps=9))
    assert ("planned anew" in capsys.readouterr().err) == (scheduler != "constant")

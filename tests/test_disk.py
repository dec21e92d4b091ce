import errno
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuninglab.disk import (
    finish_replacing,
    own_file,
    remove_folder,
    whole_file,
    whole_folder,
    write_whole,
)
from tuninglab.embedded.task import write_data
from tuninglab.errors import WorkError

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_appears_at_once(tmp_path):
    with whole_folder(tmp_path / "deep" / "a") as beside:
        (beside / "file").write_text("x")
        assert not (tmp_path / "deep" / "a").exists()
    assert (tmp_path / "deep" / "a" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a"]


@pytest.mark.parametrize("error", [FULL, KeyError("a bug")])
def test_a_failure_leaves_the_old_folder(tmp_path, error):
    with whole_folder(tmp_path / "a") as beside:
        (beside / "file").write_text("old")
    expected = WorkError if error is FULL else KeyError
    with pytest.raises(expected), whole_folder(tmp_path / "a") as beside:
        (beside / "file").write_text("new")
        raise error
    assert (tmp_path / "a" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@contextmanager
def files_limited_to(size: int):
    """Let the system refuse larger files, as a full disk does (EFBIG in place of ENOSPC)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Otherwise the signal of that refusal would end the process.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_what_writers_of_tensors_raise_on_a_full_disk_is_told(tmp_path, save):
    with files_limited_to(1000), pytest.raises(WorkError, match="could not be written"):
        with whole_folder(tmp_path / "a") as beside:
            save({"x": torch.zeros(100_000)}, beside / "tensors")
    assert list(tmp_path.iterdir()) == []


def test_data_that_a_full_disk_does_not_hold_are_removed_and_the_place_is_named(tmp_path):
    # Its pictures have 300 bytes and more, its records more together.
    with files_limited_to(250), pytest.raises(WorkError) as error:
        write_data(tmp_path / "new", 4)
    assert f"--write_data {tmp_path / 'new'}: File too large" in str(error.value)
    assert list((tmp_path / "new").iterdir()) == []


def test_leftovers_of_a_killed_writer_do_no_harm(tmp_path):
    (tmp_path / ".a.writing").mkdir()
    (tmp_path / ".a.writing" / "half").write_text("x")
    with whole_folder(tmp_path / "a") as beside:
        (beside / "file").write_text("x")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


# Replaces the folder argv[1], and dies at the step argv[2] of doing so, as by a kill.
KILLED = """
import os, pathlib, shutil, sys

from tuninglab.disk import whole_folder

path, point = pathlib.Path(sys.argv[1]), sys.argv[2]
rename, rmtree = pathlib.Path.rename, shutil.rmtree
done = []

def renaming(source, target):
    if point == "before the renames":
        os._exit(9)
    rename(source, target)
    done.append(target)
    if point == ("between the renames", "after the renames")[len(done) - 1]:
        os._exit(9)

def deleting(folder, **options):
    if done:
        (pathlib.Path(folder) / "one").unlink()
        os._exit(9)
    rmtree(folder, **options)

pathlib.Path.rename, shutil.rmtree = renaming, deleting
with whole_folder(path) as beside:
    (beside / "one").write_text("new")
    if point == "while writing":
        os._exit(9)
    (beside / "two").write_text("new")
"""
POINTS = {
    "while writing": "old",
    "before the renames": "old",
    "between the renames": "new",
    "after the renames": "new",
    "while the old one goes": "new",
}


def content(folder) -> set[str]:
    assert {path.name for path in folder.iterdir()} == {"one", "two"}
    return {path.read_text() for path in folder.iterdir()}


def write(folder, text):
    with whole_folder(folder) as beside:
        (beside / "one").write_text(text)
        (beside / "two").write_text(text)


def killed(folder, point):
    command = [sys.executable, "-c", KILLED, str(folder), point]
    assert subprocess.run(command, check=False).returncode == 9


@pytest.mark.parametrize(("point", "expected"), POINTS.items())
def test_a_kill_leaves_the_old_folder_or_the_new(tmp_path, point, expected):
    write(tmp_path / "a", "old")
    killed(tmp_path / "a", point)
    finish_replacing(tmp_path / "a")
    assert content(tmp_path / "a") == {expected}
    # The next one cleans up.
    write(tmp_path / "a", "third")
    assert content(tmp_path / "a") == {"third"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_is_survived_by_writing_alone(tmp_path, point):
    write(tmp_path / "a", "old")
    killed(tmp_path / "a", point)
    with pytest.raises(KeyError), whole_folder(tmp_path / "a"):
        raise KeyError("a bug of the next writer")
    assert content(tmp_path / "a") == {POINTS[point]}


def test_half_a_folder_is_never_taken_for_a_whole_one(tmp_path):
    killed(tmp_path / "a", "while writing")
    finish_replacing(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    # Not with what an earlier kill left of the old one either.
    write(tmp_path / "a", "old")
    killed(tmp_path / "a", "while the old one goes")
    with pytest.raises(KeyError), whole_folder(tmp_path / "a"):
        assert not (tmp_path / ".a.old").exists()
        raise KeyError


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    write(tmp_path / "a", "old")
    rename = type(tmp_path).rename

    def renaming(source, target):
        if source.name == ".a.writing":
            raise OSError(errno.EACCES, "Permission denied", str(source))
        return rename(source, target)

    monkeypatch.setattr(type(tmp_path), "rename", renaming)
    with pytest.raises(WorkError, match="Permission denied"):
        write(tmp_path / "a", "new")
    assert content(tmp_path / "a") == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_reader_may_finish_what_a_living_writer_does(tmp_path, monkeypatch):
    write(tmp_path / "a", "old")
    rename = type(tmp_path).rename

    def renaming(source, target):
        rename(source, target)
        if source == tmp_path / "a":
            monkeypatch.undo()
            finish_replacing(tmp_path / "a")
            assert content(tmp_path / "a") == {"new"}

    monkeypatch.setattr(type(tmp_path), "rename", renaming)
    write(tmp_path / "a", "new")
    assert content(tmp_path / "a") == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_removed_folder_does_not_come_back(tmp_path):
    write(tmp_path / "a", "old")
    killed(tmp_path / "a", "between the renames")
    remove_folder(tmp_path / "a")
    write(tmp_path / "b", "old")
    remove_folder(tmp_path / "b")
    for name in "ab":
        finish_replacing(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writing", [whole_folder, whole_file])
def test_an_input_that_is_missing_keeps_its_own_error(tmp_path, writing):
    with pytest.raises(FileNotFoundError, match="no/such/input"), writing(tmp_path / "a"):
        open("/no/such/input")
    cut_short = RuntimeError(
        "PytorchStreamReader failed reading zip archive: not a ZIP archive [inline_container.cc]"
    )
    with pytest.raises(RuntimeError, match="Reader"), writing(tmp_path / "a"):
        raise cut_short
    with pytest.raises(FileNotFoundError), writing(tmp_path / "a"):
        load_file(tmp_path / "none.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WorkError, match="could not be written"):
        write(tmp_path / "file" / "a", "x")
    with pytest.raises(WorkError, match="could not be written"), whole_folder(tmp_path / "a") as a:
        (a / "none" / "x").write_text("x")


def test_a_text_is_whole_or_old(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", "old")

    def fail(*args):
        raise FULL

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(WorkError, match="No space left.*whole"):
        write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_writer_left_goes_and_that_of_a_living_one_stays(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    for left in (ended.pid, os.getppid(), "x"):
        (tmp_path / f".page.{left}.writing").touch()
    for text in ("old", "new"):
        with own_file(tmp_path / "page") as beside:
            assert beside.name == f".page.{os.getpid()}.writing"
            beside.write_text(text)
    assert (tmp_path / "page").read_text() == "new"
    stay = {"page", f".page.{os.getppid()}.writing", ".page.x.writing"}
    assert {path.name for path in tmp_path.iterdir()} == stay

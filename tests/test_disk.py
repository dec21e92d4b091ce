import errno
import resource
import signal
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from tuninglab.disk import whole_folder, write_whole
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


def test_leftovers_of_a_killed_writer_do_no_harm(tmp_path):
    (tmp_path / ".a.writing").mkdir()
    (tmp_path / ".a.writing" / "half").write_text("x")
    with whole_folder(tmp_path / "a") as beside:
        (beside / "file").write_text("x")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_a_text_is_whole_or_old(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", "old")

    def fail(*args):
        raise FULL

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(WorkError, match="No space left.*whole"):
        write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]

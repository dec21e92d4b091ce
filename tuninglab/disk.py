"""Writing that leaves either the old state or the new one on disk, never half of it.

A folder is replaced in steps: the new one is written in full as `.NAME.writing`, the old one moves
aside to `.NAME.old`, the new one takes its name, the old one is deleted. Killed between the two
moves, a process leaves nothing under the name; so both lying beside it means that the new one is
whole, and `finish_replacing` completes the move. Readers of a folder call it first.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuninglab.errors import WorkError

# Full disk, quota, longest file, broken device: never the fault of a file that was to be read.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a new folder beside `path` to write into; it takes the place of `path` at the end.

    If writing fails, the new folder is removed and what was at `path` stays.

    Raises:
        WorkError: the disk is full or the place cannot be written.
    """
    beside, old = _beside(path)
    with _told(path, beside):
        # Left over where an earlier process was killed. While writing, `old` must not be there:
        # beside half a new folder it would vouch for it.
        finish_replacing(path)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        if path.exists():
            path.rename(old)
        try:
            _move(beside, path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    shutil.rmtree(old, ignore_errors=True)


def finish_replacing(path: Path) -> None:
    """Complete the replacing of a folder whose process was killed between the two moves."""
    beside, old = _beside(path)
    if old.exists() and beside.exists() and not path.exists():
        _move(beside, path)


def remove_folder(path: Path) -> None:
    """Delete a folder: at once for those who look, with what a killed process left beside it."""
    beside, old = _beside(path)
    # First what `finish_replacing` would bring back.
    shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
        shutil.rmtree(old)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a new file beside `path` to write; it takes the place of `path` at the end.

    Raises:
        WorkError: the disk is full or the place cannot be written.
    """
    beside, _ = _beside(path)
    with _told(path, beside):
        yield beside
        os.replace(beside, path)


@contextmanager
def own_file(path: Path) -> Iterator[Path]:
    """As `whole_file`, where several processes may write it at a time: the last one's stays.

    Raises:
        WorkError: as there.
    """
    # What others were writing as they were killed has a name that nobody will write to again.
    for left in path.parent.glob(f".{path.name}.*.writing"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and not is_running(int(pid)):
            left.unlink(missing_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.writing")
    with _told(path, beside):
        yield beside
        os.replace(beside, path)


def write_whole(path: Path, text: str) -> None:
    """Write a text file beside its place, then rename it there.

    Raises:
        WorkError: the disk is full or the place cannot be written.
    """
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def is_running(pid: int) -> bool:
    """Whether this machine has a process of this number."""
    if not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Of another user.
    except OSError:
        pass
    return True


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.writing"), path.with_name(f".{path.name}.old")


def _move(beside: Path, path: Path) -> None:
    try:
        beside.rename(path)
    except FileNotFoundError:
        # A reader may have finished what it took for the work of a killed process.
        if not path.exists():
            raise


@contextmanager
def _told(path: Path, beside: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        elif beside.is_file():
            beside.unlink()
        if not _is_write_failure(error, path, beside):
            raise
        reason = str(error).strip().splitlines()[0]
        raise WorkError(
            f"{path} could not be written: {reason}. What was saved before is whole. "
            "Free some space or choose another place (--output_dir, --out)."
        ) from error


def _is_write_failure(error: Exception, path: Path, beside: Path) -> bool:
    """Whether writing failed, and not the reading of something that was to be written."""
    if not isinstance(error, OSError):
        # torch.save and safetensors report a full disk as RuntimeError and as their own class.
        text, number = str(error), re.search(r"os error (\d+)", str(error))
        torch_writes = "inline_container" in text and "PytorchStreamReader" not in text
        return torch_writes or bool(number and int(number[1]) in UNWRITABLE)
    if error.errno in UNWRITABLE or not isinstance(error.filename, str):
        return error.errno in UNWRITABLE
    named = Path(error.filename)
    return named == path or named.is_relative_to(beside) or beside.is_relative_to(named)

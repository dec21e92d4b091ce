"""Writing that leaves either the old state or the new one on disk, never half of it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuninglab.errors import WorkError


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a new folder beside `path` to write into; it takes the place of `path` at the end.

    If writing fails, the new folder is removed and what was at `path` stays.

    Raises:
        WorkError: the disk is full or the place cannot be written.
    """
    beside = path.with_name(f".{path.name}.writing")
    old = path.with_name(f".{path.name}.old")
    # Left over where an earlier process was killed while writing.
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        yield beside
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        beside.rename(path)
    # torch.save and safetensors report a full disk as RuntimeError and as their own class.
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        if not _is_write_failure(error):
            raise
        raise WorkError(_not_written(path, error)) from error
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a new file beside `path` to write; it takes the place of `path` at the end.

    Raises:
        WorkError: the disk is full or the place cannot be written.
    """
    beside = path.with_name(f".{path.name}.writing")
    try:
        yield beside
        os.replace(beside, path)
    except Exception as error:
        beside.unlink(missing_ok=True)
        if not _is_write_failure(error):
            raise
        raise WorkError(_not_written(path, error)) from error


def write_whole(path: Path, text: str) -> None:
    """Write a text file beside its place, then rename it there.

    Raises:
        WorkError: the disk is full or the place cannot be written.
    """
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _is_write_failure(error: Exception) -> bool:
    if isinstance(error, OSError):
        return True
    text = str(error)
    return "PytorchStreamWriter" in text or "os error" in text or "inline_container" in text


def _not_written(path: Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    return (
        f"{path} could not be written: {reason}. What was saved before is whole. "
        "Free some space or choose another place (--output_dir, --out)."
    )

"""The door for files that others may have made: regular ones, of bounded size, text and JSON."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from tuninglab.errors import UserError

MIB = 2**20
# Real configurations nest below 20 deep; libraries that copy them recurse, and give up near 1000.
DEEPEST = 100
# Linux: PATH_MAX and NAME_MAX. A longer name cannot be of anything that exists.
LONGEST_PATH, LONGEST_PART = 4095, 255
SHOWN_LETTERS = 400
# So that opening a pipe without a writer does not wait; Windows has neither.
OPENING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
OPENING |= getattr(os, "O_BINARY", 0)


def read_bytes(path: str | Path, limit: int, what: str) -> bytes:
    """The content of a file, after a look at what was opened: nothing waits and nothing is endless.

    Args:
        path: a regular file, or a link to one.
        limit: bytes that it may have.
        what: the file is, for messages ("model configuration").

    Raises:
        UserError: there is none, it is a pipe, a device or a folder, cannot be read, or is larger.
    """
    descriptor = open_regular(path, what)
    try:
        with os.fdopen(descriptor, "rb") as file:
            # Not by the size it states: that of a file which grows, or of /proc, is another.
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{what}: {path}: {error.strerror}; it cannot be read") from error
    if len(content) > limit:
        raise UserError(f"{what}: {path} is larger than {_size(limit)}; this is no such file")
    return content


def open_regular(path: str | Path, what: str) -> int:
    """A descriptor of a file, to be closed by the caller, after a look at what was opened.

    Raises:
        UserError: there is none, it is a pipe, a device or a folder, or cannot be read.
    """
    check_path(path, what)
    try:
        descriptor = os.open(path, OPENING)
    except OSError as error:
        raise UserError(f"{what}: {path}: {error.strerror}; check the path") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(
            f"{what}: {path} is no regular file but a folder, a pipe or a device; "
            "write what it gives into a file and name that"
        )
    return descriptor


def read_text(path: str | Path, limit: int, what: str) -> str:
    """As `read_bytes`, the content as UTF-8.

    Raises:
        UserError: as there, or it is not UTF-8.
    """
    try:
        return read_bytes(path, limit, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: {path} is not UTF-8 text: {error}") from error


def read_json(path: str | Path, limit: int, what: str) -> Any:
    """As `read_text`, the content as the JSON value that it is; not deeper than `DEEPEST`.

    Raises:
        UserError: as there, or it is no JSON, or nested too deep.
    """
    text = read_text(path, limit, what)
    too_deep = f"{what}: {path} is nested more than {DEEPEST} deep; this is no such file"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{what}: {path} is no JSON, but incomplete or damaged ({error}); copy it again"
        ) from error
    except RecursionError:
        raise UserError(too_deep) from None
    if is_deep(value):
        raise UserError(too_deep)
    return value


def is_deep(value: Any) -> bool:
    """Whether a JSON value is nested more than `DEEPEST` deep."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return False
    return True


def check_path(path: str | Path, what: str) -> None:
    """Refuse what can be the name of no file, before anything looks for one.

    Raises:
        UserError: it holds a NUL, or is longer than names can be.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise UserError(f"{what}: {shown(text)} holds a NUL character, which no file name has")
    try:
        parts = os.fsencode(text).split(os.sep.encode())
    except UnicodeEncodeError:
        raise UserError(f"{what}: {shown(text)} holds letters that no file name can have") from None
    if sum(map(len, parts)) + len(parts) > LONGEST_PATH or max(map(len, parts)) > LONGEST_PART:
        raise UserError(f"{what}: {shown(text)} is longer than file names can be; check it")


def shown(value: object) -> str:
    """A value as messages show it: whatever it is made of, printable and of bounded length."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else str(value)
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _size(limit: int) -> str:
    return f"{limit // MIB} MiB" if limit >= MIB else f"{limit:,} bytes"

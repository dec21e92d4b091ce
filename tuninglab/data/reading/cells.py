"""Pictures in the cells of tables: a file, a block of rows, a row and the way into its columns."""

import os
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tuninglab.data.reading.json_files import shown
from tuninglab.data.reading.slices import picture_bytes
from tuninglab.data.sample import StoredPicture
from tuninglab.errors import UserError
from tuninglab.untrusted import MIB, open_regular

# What a process keeps of the columns of pictures that it read last. Windows of an order by groups
# are to be as large, no larger: with a window of ten groups and half of them held, every second
# picture reads its group anew (measured: 80 groups read 3,949 times).
HELD_GROUPS = 40
HELD_BYTES = 256 * MIB
HELD_FILES = 64


@dataclass(frozen=True)
class Cell(StoredPicture):
    """A picture in a table.

    Args:
        file: the table.
        size: of the file when its rows were read, in bytes.
        changed: when it had last been changed by then, in nanoseconds.
        block: of rows: parquet's row group, or a batch of Arrow's.
        row: in the block.
        place: the column, and the fields and places of lists down to the picture.
    """

    file: Path
    size: int
    changed: int
    block: int
    row: int
    place: tuple[str | int, ...]

    @property
    def name(self) -> str:
        """What messages call it."""
        where = ".".join(map(str, self.place))
        return f"{shown(self.file)}: {where} of row {self.row} in block {self.block}"

    def read(self) -> bytes:
        """The bytes of the picture's file.

        Raises:
            UserError: the table is gone, has changed, or cannot be read; or the cell is no picture.
        """
        if file_state(self.file) != (self.size, self.changed):
            raise UserError(f"{shown(self.file)} has changed since its rows were read; start anew")
        with told(self.file):
            value: Any = self._column()[self.row]
            for step in self.place[1:]:
                value = value[step]
            if isinstance(value, pa.StructScalar):
                value = value["bytes"]
            value = value.as_py()
        return picture_bytes(value, self.name)

    @abstractmethod
    def _column(self) -> Any:
        """The column of the picture, of the rows in its block."""


def file_state(file: Path) -> tuple[int, int]:
    """Size and time of the last change of a file, which has to be a regular one.

    Raises:
        UserError: it is missing, or something else.
    """
    descriptor = open_regular(file, "data")
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return found.st_size, found.st_mtime_ns


@contextmanager
def told(file: Path) -> Iterator[None]:
    """Whatever pyarrow finds wrong with a file, as a message that names it.

    Raises:
        UserError: pyarrow cannot read it, or it is not what it was.
    """
    try:
        yield
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{shown(file)} is damaged or not complete: {lines[0][:200]}; copy it again"
        ) from error


class Held:
    """What was read last, by key: up to a number, and up to a size if it is more than one thing."""

    def __init__(self, most: int, most_bytes: int):
        self.most, self.most_bytes = most, most_bytes
        self.forget()

    def forget(self) -> None:
        """Start empty, as a process does after a fork: nothing of its parent's is used there."""
        # Another thread of the parent may have held the lock; nobody would ever free it here.
        self.lock = threading.Lock()
        self.things: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.bytes = 0

    def get(self, key: Hashable, load: Callable[[], tuple[Any, int]]) -> Any:
        """What is held by that key, or else what `load` gives, with its size in bytes."""
        with self.lock:
            if key not in self.things:
                # Room first, so that at most one thing more than allowed is in memory.
                while self.things and (
                    len(self.things) >= self.most or self.bytes >= self.most_bytes
                ):
                    self._drop()
                self.things[key] = load()
                self.bytes += self.things[key][1]
                while len(self.things) > 1 and self.bytes > self.most_bytes:
                    self._drop()
            self.things.move_to_end(key)
            return self.things[key][0]

    def _drop(self) -> None:
        self.bytes -= self.things.popitem(last=False)[1][1]


def held(most: int, most_bytes: int) -> Held:
    """A `Held` of this process that its forks start empty."""
    made = Held(most, most_bytes)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=made.forget)
    return made

"""Parquet: rows, one group after the other, their pictures left where they lie until asked for."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuninglab.data.reading.cells import (
    HELD_BYTES,
    HELD_FILES,
    HELD_GROUPS,
    Cell,
    file_state,
    held,
    told,
)
from tuninglab.data.reading.columns import (
    Kind,
    features_of,
    kinds_of,
    records_of_rows,
    without_bytes,
)
from tuninglab.data.reading.found import Found, RawRecord, Reading
from tuninglab.data.reading.json_files import shown
from tuninglab.errors import UserError
from tuninglab.untrusted import MIB

MOST_GROUP = 4096 * MIB  # decoded
BATCH_ROWS, BATCH_BYTES = 1024, 32 * MIB
SAMPLE_ROWS = 16
BYTES = ("BYTE_ARRAY", "NONE")

_columns = held(HELD_GROUPS, HELD_BYTES)
_files = held(HELD_FILES, HELD_BYTES)


@dataclass(frozen=True)
class ParquetCell(Cell):
    """A picture in a parquet file; reading it reads its column of the row group."""

    @property
    def group(self) -> tuple[str, int]:
        """The file and its row group."""
        return str(self.file), self.block

    def _column(self) -> Any:
        key = (self.file, self.size, self.changed, self.block, self.place[0])
        return _columns.get(key, partial(_read_column, *key))


def parquet_files(files: Sequence[Path], root: Path) -> Found:
    """The rows of parquet files as one set of records, in the order of the files given."""
    what = "a parquet file" if len(files) == 1 else f"{len(files)} parquet files"
    return Found(what, list(files), partial(_records, list(files)), root)


def window(files: Sequence[Path]) -> int:
    """How many row groups of these files a process holds at a time, at least one.

    Raises:
        UserError: a file cannot be read.
    """
    largest = 1
    for file in files:
        with told(file), opened(file) as table:
            groups = map(table.metadata.row_group, range(table.num_row_groups))
            largest = max([largest, *(group.total_byte_size for group in groups)])
    return max(1, min(HELD_GROUPS, HELD_BYTES // largest))


def opened(file: Path) -> pq.ParquetFile:
    """A parquet file, of which columns are read bit by bit, by this thread alone.

    Raises:
        UserError: it is missing, no regular file, or no parquet.
    """
    file_state(file)
    with told(file):
        return pq.ParquetFile(file, memory_map=False, pre_buffer=False, buffer_size=MIB)


def _read_column(
    file: Path, size: int, changed: int, group: int, column: str
) -> tuple[pa.Array, int]:
    table = _files.get((file, size, changed), lambda: (opened(file), 0))
    size = table.metadata.row_group(group).total_byte_size
    if size > MOST_GROUP:
        raise UserError(
            f"{shown(file)}: the row group {group} has {size:,} bytes; write the file with smaller "
            "ones (row_group_size=100)"
        )
    read = table.read_row_group(group, columns=[column], use_threads=False).column(column)
    array = read.combine_chunks() if read.num_chunks != 1 else read.chunk(0)
    return array, array.nbytes


def _records(files: Sequence[Path], reading: Reading) -> Iterator[RawRecord]:
    for file in files:
        size, changed = file_state(file)
        with opened(file) as table:
            with told(file):
                features = features_of(table.schema_arrow.metadata)
                columns = kinds_of(table.schema_arrow, features, file)
            # Block and row, and then the place in that row, make a picture.
            cell = partial(partial, ParquetCell, file, size, changed)
            yield from records_of_rows(_rows(table, columns, file), columns, cell, file, reading)


def _rows(
    table: pq.ParquetFile, columns: Mapping[str, Kind], file: Path
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(row group, row in there, values) of all rows, without bytes of pictures if it can be."""
    with told(file):
        wanted = _wanted(table, columns)
    for group in range(table.num_row_groups):
        with told(file):
            about = table.metadata.row_group(group)
            rows, size = max(1, about.num_rows), max(1, about.total_byte_size)
            some = max(1, min(BATCH_ROWS, BATCH_BYTES * rows // size))
            batches = table.iter_batches(some, [group], wanted, use_threads=False)
        first = 0
        while True:
            with told(file):
                batch = next(batches, None)
                values = without_bytes(batch, columns).to_pylist() if batch is not None else []
            if batch is None:
                break
            for row in values:
                yield group, first, row
                first += 1


def _wanted(table: pq.ParquetFile, columns: Mapping[str, Kind]) -> list[str]:
    """The leaves of the columns to read.

    Which pictures of {bytes, path} are null is seen in their paths; bytes are read as well where
    some are missing among the first, whose pictures are files beside the table. (The statistics of
    row groups count what is missing, but damaged ones end the process in pyarrow 26, so that
    nothing of what is noted about columns is looked at.)
    """
    about = [table.schema.column(i) for i in range(len(table.schema))]
    leaves = [leaf.path for leaf in about]
    # Bytes are what has no meaning for parquet, texts what is said to be one.
    plain = {leaf.path for leaf in about if (leaf.physical_type, leaf.logical_type.type) == BYTES}
    inner = Counter(leaf.rpartition(".")[0] for leaf in leaves)
    pictures = {leaf[:-5] for leaf in leaves if leaf.endswith(".path") and inner[leaf[:-5]] == 2}
    unread = {f"{name}.bytes" for name in pictures} & plain
    if not unread or not table.num_row_groups:
        return leaves
    first = next(table.iter_batches(SAMPLE_ROWS, [0], use_threads=False), None)
    for row in [] if first is None else without_bytes(first, columns).to_pylist():
        if any(_lacks_bytes(value) for value in row.values()):
            return leaves
    return [leaf for leaf in leaves if leaf not in unread]


def _lacks_bytes(value: Any) -> bool:
    """Whether a picture in a value, however deep, is a path without bytes."""
    if isinstance(value, dict):
        if value.keys() == {"bytes", "path"}:
            return value["bytes"] is None
        return any(map(_lacks_bytes, value.values()))
    return isinstance(value, list) and any(map(_lacks_bytes, value))

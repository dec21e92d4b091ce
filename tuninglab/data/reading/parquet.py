"""Parquet: rows, one group after the other, their pictures left where they lie until asked for."""

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
from tuninglab.data.reading.columns import Kind, features_of, kinds_of, record_of_row
from tuninglab.data.reading.found import Found, RawRecord, Reading
from tuninglab.data.reading.json_files import shown
from tuninglab.errors import UserError
from tuninglab.untrusted import MIB

MOST_GROUP = 2048 * MIB  # of one column, decoded
BATCH_ROWS, BATCH_BYTES = 1024, 32 * MIB

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
            for group in range(table.num_row_groups):
                about = table.metadata.row_group(group)
                sizes = [about.column(i).total_uncompressed_size for i in range(about.num_columns)]
                largest = max(largest, sum(sizes))
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
    about = table.metadata.row_group(group)
    for chunk in map(about.column, range(about.num_columns)):
        ours = chunk.path_in_schema == column or chunk.path_in_schema.startswith(f"{column}.")
        if ours and chunk.total_uncompressed_size > MOST_GROUP:
            raise UserError(
                f"{shown(file)}: the row group {group} has {chunk.total_uncompressed_size:,} bytes "
                "in a column; write it with smaller ones (row_group_size=100)"
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
            number = 0
            for group, first, row in _rows(table, columns, file):
                number += 1
                place = partial(ParquetCell, file, size, changed, group, first)
                try:
                    record = record_of_row(row, columns, place, reading)
                except ValueError as error:
                    yield f"{shown(file)}, row {number}", error
                    continue
                if record is not None:
                    yield f"{shown(file)}, row {number}", record


def _rows(
    table: pq.ParquetFile, columns: Mapping[str, Kind], file: Path
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(row group, row in there, values) of all rows, without bytes of pictures if it can be."""
    for group in range(table.num_row_groups):
        with told(file):
            wanted, size = _wanted(table, columns, group)
            rows = max(1, table.metadata.row_group(group).num_rows)
            some = max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(1, size)))
            batches = table.iter_batches(some, [group], wanted, use_threads=False)
        first = 0
        while True:
            with told(file):
                batch = next(batches, None)
                values = batch.to_pylist() if batch is not None else []
            if batch is None:
                break
            for row in values:
                yield group, first, row
                first += 1


def _wanted(
    table: pq.ParquetFile, columns: Mapping[str, Kind], group: int
) -> tuple[list[str], int]:
    """The leaves of the columns to read, and their bytes together.

    Bytes of pictures are read only where some may be missing, which decides what the row is.
    """
    about = table.metadata.row_group(group)
    leaves = [about.column(i) for i in range(about.num_columns)]
    names = {leaf.path_in_schema for leaf in leaves}
    wanted = []
    for leaf in leaves:
        path = leaf.path_in_schema
        kind = columns.get(path)
        struct = path.endswith(".bytes") and f"{path[:-6]}.path" in names
        whole = leaf.statistics is not None and leaf.statistics.null_count == 0
        if not (whole and (struct or (kind is not None and kind.what == "bytes"))):
            wanted.append(leaf)
    # Of nothing but pictures at least one column is read, so that rows are counted.
    wanted = wanted or leaves[:1]
    return (
        [leaf.path_in_schema for leaf in wanted],
        sum(leaf.total_uncompressed_size for leaf in wanted),
    )

"""Files of Arrow's own format, and the folders of them that `datasets` saves; all memory-mapped."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from tuninglab.data.reading.cells import HELD_BYTES, HELD_FILES, Cell, file_state, held, told
from tuninglab.data.reading.columns import (
    Kind,
    features_of,
    kinds_of,
    records_of_rows,
    without_bytes,
)
from tuninglab.data.reading.folders import head, inside, wrong_split
from tuninglab.data.reading.found import Found, RawRecord, Reading
from tuninglab.data.reading.json_files import shown
from tuninglab.errors import UserError
from tuninglab.untrusted import MIB, read_json

FILE_MARK = b"ARROW1"
MOST_NOTED = 16 * MIB  # of dataset_info.json, which may list a thousand classes
SLICE_ROWS = 64


class Batches:
    """The batches of rows in a mapped file, each made when it is asked for."""

    def __init__(self, file: Path):
        source = pa.memory_map(os.fspath(file))
        self._checked: set[int] = set()
        self._lock = threading.Lock()
        if head(file, len(FILE_MARK)) == FILE_MARK:
            reader = pa.ipc.open_file(source)
            self.schema, self._batch = reader.schema, reader.get_batch
            self.count = reader.num_record_batches
            return
        # A stream has no list of its batches; messages are views of the map, not copies of it.
        messages = list(pa.ipc.MessageReader.open_stream(source))
        if any(message.type == "dictionary" for message in messages):
            raise UserError(
                f"{shown(file)} has columns of categories, which a stream does not let be read at "
                "random; write it as parquet"
            )
        self.schema, batches = pa.ipc.read_schema(messages[0]), messages[1:]
        self._batch = lambda number: pa.ipc.read_record_batch(batches[number], self.schema)
        self.count = len(batches)

    def __getitem__(self, number: int) -> pa.RecordBatch:
        with self._lock:
            batch = self._batch(number)
        # Places in a damaged file may point anywhere: looked at once, before any is followed.
        if number not in self._checked:
            batch.validate(full=True)
            self._checked.add(number)
        return batch


_files = held(HELD_FILES, HELD_BYTES)


@dataclass(frozen=True)
class ArrowCell(Cell):
    """A picture in a file of Arrow's; in any order, for nothing else has to be read with it."""

    def _column(self) -> Any:
        key = (self.file, self.size, self.changed)
        batches: Batches = _files.get(key, lambda: (Batches(self.file), 0))
        return batches[self.block].column(self.place[0])


def saved_folder(folder: Path, split: str | None) -> Found:
    """What `save_to_disk` of `datasets` wrote, of one split.

    Raises:
        UserError: a file of it is missing or damaged, or the split is not there or not named.
    """
    listed = folder / "dataset_dict.json"
    if os.path.isfile(listed):
        splits = _noted(listed).get("splits")
        if not isinstance(splits, list) or not all(map(_is_name, splits)):
            raise UserError(f"{shown(listed)} names no splits; copy the folder again")
        if split not in splits and (split is not None or len(splits) != 1):
            raise wrong_split(folder, split, splits)
        folder = inside(folder / (split or splits[0]), folder)
        split = None
    if split is not None:
        raise wrong_split(folder, split, [])
    state = _noted(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise UserError(f"{shown(folder)} holds a choice of rows; save it with flatten_indices()")
    entries = state.get("_data_files")
    entries = entries if isinstance(entries, list) else []
    names = [one.get("filename") if isinstance(one, dict) else None for one in entries]
    if not names or not all(map(_is_name, names)):
        raise UserError(f"{shown(folder / 'state.json')} names no files; copy the folder again")
    files = [inside(folder / str(name), folder) for name in names]
    for file in files:
        file_state(file)
    info = folder / "dataset_info.json"
    features = _noted(info).get("features") if os.path.isfile(info) else None
    return _found("a folder of Hugging Face's datasets", files, folder, features)


def arrow_files(files: Sequence[Path], root: Path) -> Found:
    """The rows of files of Arrow's as one set of records, in the order of the files given."""
    what = "an Arrow file" if len(files) == 1 else f"{len(files)} Arrow files"
    return _found(what, files, root, None)


def _found(what: str, files: Sequence[Path], root: Path, features: Any) -> Found:
    return Found(what, list(files), partial(_records, list(files), features), root)


def _is_name(value: Any) -> bool:
    """Whether it names something directly in a folder."""
    return isinstance(value, str) and value == os.path.basename(value) and value not in ("", "..")


def _noted(file: Path) -> dict[str, Any]:
    value = read_json(file, MOST_NOTED, "data")
    if not isinstance(value, dict):
        raise UserError(f"{shown(file)} holds no object; copy the folder again")
    return value


def _records(files: Sequence[Path], features: Any, reading: Reading) -> Iterator[RawRecord]:
    for file in files:
        size, changed = file_state(file)
        with told(file):
            batches = Batches(file)
            noted = features if isinstance(features, dict) else None
            noted = features_of(batches.schema.metadata) if noted is None else noted
            columns = kinds_of(batches.schema, noted, file)
        # Block and row, and then the place in that row, make a picture.
        cell = partial(partial, ArrowCell, file, size, changed)
        yield from records_of_rows(_rows(batches, columns, file), columns, cell, file, reading)


def _rows(
    batches: Batches, columns: Mapping[str, Kind], file: Path
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(batch, row in there, values) of all rows, without bytes of pictures but for rare columns."""
    for block in range(batches.count):
        with told(file):
            batch = without_bytes(batches[block], columns)
        for start in range(0, batch.num_rows, SLICE_ROWS):
            with told(file):
                rows = batch.slice(start, SLICE_ROWS).to_pylist()
            for offset, row in enumerate(rows):
                yield block, start + offset, row

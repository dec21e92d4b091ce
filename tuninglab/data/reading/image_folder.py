"""Folders of picture files: with a table about them, with texts beside them, or by class."""

import os
import posixpath
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from tuninglab.data.reading.folders import (
    PICTURE_ENDINGS,
    SPLIT_WORD,
    ending,
    entries,
    inside,
    need_pyarrow,
    of_split,
    pictures_below,
    subfolders,
)
from tuninglab.data.reading.found import Found, RawRecord, Reading
from tuninglab.data.reading.json_files import parse_json, shown
from tuninglab.data.reading.keyed_files import MOST_TEXT, KeyedFile, record_of, split_key
from tuninglab.data.reading.picture_keys import gathered
from tuninglab.data.reading.tables import text_lines, text_table
from tuninglab.data.sample import brief
from tuninglab.errors import UserError
from tuninglab.untrusted import read_bytes

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
LOOKED_AT = 100  # pictures, for a text beside one
UNNAMED = "pictures without a row in the metadata left out"
UNLABELLED = "pictures beside the folders of classes left out"
BY_CLASS = "pictures whose folder's name is learned as their caption"


def tables_of(folder: Path) -> list[Path]:
    """The tables about pictures in a folder or, where it has none, in its folders.

    Raises:
        UserError: a folder has several.
    """
    for places in ([folder], subfolders(folder)):
        found = [[one / name for name in TABLES if os.path.isfile(one / name)] for one in places]
        several = [tables for tables in found if len(tables) > 1]
        if several:
            names = ", ".join(table.name for table in several[0])
            raise UserError(f"{shown(several[0][0].parent)} holds {names}; keep one of them")
        if tables := [inside(table, folder) for one in found for table in one]:
            return tables
    return []


def described_folder(folder: Path, tables: Sequence[Path], split: str | None) -> Found:
    """Pictures and the tables that name them (Hugging Face's imagefolder).

    Raises:
        UserError: the split is not there or not named, or pyarrow is needed and not there.
    """
    tables = of_split(tables, folder, split)
    for table in tables:
        if table.suffix == ".parquet":
            need_pyarrow(table)
    what = f"a folder of pictures with {tables[0].name}"
    return Found(what, tables, partial(_described, folder, tables), folder)


def _described(folder: Path, tables: Sequence[Path], reading: Reading) -> Iterator[RawRecord]:
    for table in tables:
        base = table.parent.relative_to(folder).as_posix()
        # Hashes, not the names, so that a million of them take little.
        named: set[int] = set()
        for origin, row in _rows(table, reading):
            if isinstance(row, ValueError):
                yield origin, row
                continue
            try:
                yield origin, _with_names(row, base, named, reading)
            except ValueError as error:
                yield origin, error
        for name in pictures_below(table.parent):
            if hash(posixpath.join(base, name) if base != "." else name) not in named:
                reading.notes[UNNAMED] += 1


def _rows(table: Path, reading: Reading) -> Iterator[RawRecord]:
    if table.suffix == ".csv":
        yield from text_table(table).records(reading)
    elif table.suffix == ".parquet":
        from tuninglab.data.reading.parquet import parquet_files

        yield from parquet_files([table], table.parent).records(reading)
    else:
        for number, line in enumerate(text_lines(table), 1):
            if line.strip():
                try:
                    value = parse_json(line)
                except ValueError as error:
                    value = ValueError(f"broken JSON: {error}")
                yield f"{shown(table)}, line {number}", value


def _with_names(row: Any, base: str, named: set[int], reading: Reading) -> dict[str, Any]:
    """A row whose `file_name` and the like became keys of pictures, below the data's folder."""
    if not isinstance(row, dict):
        raise ValueError(f"the record is {brief(row)}; expected an object")
    record, pictures = {}, []
    for key, value in row.items():
        stem = key.removesuffix("s")
        if not (stem == "file_name" or stem.endswith("_file_name")):
            record[key] = value
            continue
        name = "images" if key == "file_names" else stem.removesuffix("file_name").rstrip("_")
        name = name or "image"
        if name in row or name in record:
            raise ValueError(f"the record has both {key} and {name}; keep one of the two")
        if value is not None:
            record[name] = _below(value, key, base, named)
            pictures.append(name)
    if not pictures:
        raise ValueError("the record names no picture; expected file_name or file_names")
    return gathered(record, pictures, reading)


def _below(value: Any, key: str, base: str, named: set[int]) -> Any:
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{key} is {brief(value)}; expected the path of a picture, or a list")
    names = [name if base == "." else f"{base}/{name}" for name in names]
    named.update(hash(posixpath.normpath(name)) for name in names)
    return names if isinstance(value, list) else names[0]


def class_folder(folder: Path, split: str | None) -> Found | None:
    """Pictures in a folder for each class, whose name is what is learned; None: there are none.

    Raises:
        UserError: the split is not there or not named.
    """
    inner = subfolders(folder)
    if inner and all(SPLIT_WORD.fullmatch(one.name) for one in inner):
        inner = subfolders(of_split(inner, folder, split)[0])
    elif split is not None:
        of_split(inner, folder, split)
    inner = [one for one in inner if next(pictures_below(one), None)]
    if not inner:
        return None
    what = f"a folder of pictures in {len(inner)} classes"
    return Found(what, [inner[0].parent], partial(_classes, folder, inner), folder)


def _classes(folder: Path, inner: Sequence[Path], reading: Reading) -> Iterator[RawRecord]:
    for place in inner:
        base = place.relative_to(folder).as_posix()
        for name in pictures_below(place):
            path = f"{base}/{name}"
            reading.notes[BY_CLASS] += 1
            label = posixpath.basename(posixpath.dirname(path))
            yield shown(folder / path), {"id": path, "image": path, "text": label}
    beside = {place.parent for place in inner}
    unlabelled = sum(1 for place in beside for _ in pictures_below(place, levels=0))
    if unlabelled:
        reading.notes[UNLABELLED] += unlabelled


def keyed_folder(folder: Path) -> Found | None:
    """Pictures with a text or JSON of the same name beside them; None: there are none.

    The `files` form of img2dataset is one of them.
    """
    for name in islice(pictures_below(folder, levels=1), LOOKED_AT):
        key = split_key(name)
        others = ("txt", "json", "caption", "text")
        if key and any(os.path.isfile(folder / f"{key[0]}.{other}") for other in others):
            places = [folder, *subfolders(folder)]
            what = "a folder of pictures with a text beside each"
            return Found(what, [folder], partial(_keyed, folder, places), folder)
    return None


def _keyed(folder: Path, places: Sequence[Path], reading: Reading) -> Iterator[RawRecord]:
    for place in places:
        base = place.relative_to(folder)
        # In the order of names all files of a key follow each other.
        found = [(key[0], key[1], one) for one in entries(place) if (key := split_key(one.name))]
        for key, group in groupby(found, key=lambda one: one[0]):
            files = [_keyed_file(folder, base, field, Path(one.path)) for _, field, one in group]
            # What img2dataset notes of a whole shard lies beside the folders.
            about_all = {file.kind for file in files} <= {"json", "parquet"}
            if about_all and (key.endswith("_stats") or os.path.isdir(place / key)):
                continue
            name = (base / key).as_posix()
            try:
                record = record_of(name, files, reading)
            except ValueError as error:
                yield shown(folder / name), error
                continue
            if record is not None:
                yield shown(folder / name), record


def _keyed_file(folder: Path, base: Path, field: str, path: Path) -> KeyedFile:
    path = inside(path, folder)
    name = (base / path.name).as_posix()
    size = 0 if ending(path.name) in PICTURE_ENDINGS else path.stat().st_size
    return KeyedFile(field, name, size, partial(read_bytes, path, MOST_TEXT, "data"))

"""MIMIC-IT: instructions, the ones to show before each, and pictures in base64 by their ids."""

import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tuninglab.data.reading.folders import ending, files_ending, need_pyarrow
from tuninglab.data.reading.found import Found, RawRecord, Reading
from tuninglab.data.reading.json_files import parse_json, shown
from tuninglab.data.reading.slices import TextSlice
from tuninglab.data.reading.tar_members import opened
from tuninglab.data.sample import StoredPicture, brief
from tuninglab.errors import UserError
from tuninglab.untrusted import MIB, read_text

ENDING = "_instructions.json"
BEGINNING = re.compile(rb'\s*\{\s*"(meta|data)"\s*:\s*\{')
# The largest of the released files has some 900 MB; its records refer to each other, so that all
# of it is in memory at once.
MOST_INSTRUCTIONS = 2048 * MIB
PAIR = re.compile(rb'\s*"([^"\\]{1,4096})"\s*:\s*"([^"\\]*)"\s*([,}])')
ID_COLUMNS = ("__index_level_0__", "id", "image_id")
TWICE = "ids of pictures that are there twice, the first taken"

# Where a picture lies: the number of its store, and two numbers in there. There may be millions.
Places = dict[str, tuple[int, int, int]]


def mimic_it(files: Sequence[Path], folder: Path) -> Found:
    """Instructions of MIMIC-IT and the pictures that lie beside them.

    Args:
        files: `X_instructions.json`.
        folder: with the pictures, `X.parquet` or `X.json`.

    Raises:
        UserError: there are no pictures.
    """
    stores = files_ending(folder, "parquet")
    names = {path.name.removesuffix(ENDING) for path in files}
    if stores:
        need_pyarrow(stores[0])
    else:
        others = files_ending(folder, "json")
        stores = [path for path in others if not path.stem.endswith(("_instructions", "_train"))]
    if not stores:
        raise UserError(
            f"{shown(files[0])} has no pictures beside it; put {min(names)}.parquet (or .json, ids "
            "and base64) into its folder"
        )
    # Those of the same name first: of an id that is there twice they are the ones that are meant.
    stores.sort(key=lambda path: (not path.stem.startswith(tuple(names)), path.name))
    what = "MIMIC-IT instructions"
    return Found(what, [*files, *stores], partial(_records, list(files), stores), folder)


def _records(
    files: Sequence[Path], stores: Sequence[Path], reading: Reading
) -> Iterator[RawRecord]:
    places: Places = {}
    for number, store in enumerate(stores):
        parquet = ending(store.name) == "parquet"
        for name, first, second in _in_parquet(store) if parquet else _in_json(store):
            if name in places:
                reading.notes[TWICE] += 1
            else:
                places[name] = number, first, second
    picture = partial(_picture, places, [_store(path) for path in stores])
    for file in files:
        instructions = _instructions(file)
        for name in instructions:
            origin = f"{shown(file)}: {brief(name, 100)}"
            try:
                yield origin, _record(name, instructions, places, picture)
            except ValueError as error:
                yield origin, error


def _instructions(file: Path) -> dict[str, Any]:
    try:
        document = parse_json(read_text(file, MOST_INSTRUCTIONS, "data"))
    except ValueError as error:
        raise UserError(f"{shown(file)} is no JSON: {error}; copy it again") from None
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, dict):
        raise UserError(f"{shown(file)} has no instructions: data is {brief(data)}, not an object")
    return data


def _store(path: Path) -> Callable[[str, int, int], StoredPicture]:
    """What makes a picture of its id and its place in a store."""
    if ending(path.name) != "parquet":
        return lambda name, offset, size: TextSlice(path, offset, size, name)
    from tuninglab.data.reading.cells import file_state
    from tuninglab.data.reading.parquet import ParquetCell

    state, column = file_state(path), _columns_of(path)[1]
    return lambda name, group, row: ParquetCell(path, *state, group, row, (column,))


def _picture(places: Places, stores: Sequence[Callable[..., StoredPicture]], name: str):
    number, first, second = places[name]
    return stores[number](name, first, second)


def _record(
    name: str,
    instructions: Mapping[str, Any],
    places: Places,
    picture: Callable[[str], StoredPicture],
) -> dict[str, Any]:
    """An instruction behind those that are to be shown before it, each with its own pictures."""
    one = instructions[name]
    before = _strings(one, "rel_ins_ids", name)
    messages, images, last = [], [], None
    for shown_name in [*before, name]:
        if shown_name not in instructions:
            raise ValueError(f"the instruction {brief(shown_name)} of rel_ins_ids is not there")
        turn = instructions[shown_name]
        ids = _strings(turn, "image_ids", shown_name)
        texts = [turn.get(key) for key in ("instruction", "answer")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"instruction and answer of {brief(shown_name)} are not both texts")
        missing = [one for one in ids if one not in places]
        if missing:
            raise ValueError(f"the picture {brief(missing[0])} of {brief(shown_name)} is not there")
        # A dialogue about one picture shows it once.
        new = [] if ids == last else ids
        parts = [{"type": "image"} for _ in new] + [{"type": "text", "text": texts[0]}]
        answer = [{"type": "text", "text": texts[1]}]
        messages += [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": answer},
        ]
        images += [picture(one) for one in new]
        last = ids
    return {"id": name, "messages": messages, "images": images}


def _strings(one: Any, key: str, name: str) -> list[str]:
    """A list of ids, which some files write as null or as one id."""
    if not isinstance(one, dict):
        raise ValueError(f"the instruction {brief(name)} is {brief(one)}; expected an object")
    value = one.get(key)
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(inner, str) for inner in values):
        raise ValueError(f"{key} of {brief(name)} is {brief(value)}; expected a list of ids")
    return values


def _columns_of(file: Path) -> tuple[str, str]:
    """The columns of the ids and of the pictures in a parquet file."""
    from tuninglab.data.reading.parquet import opened as parquet

    with parquet(file) as table:
        names = table.schema_arrow.names
    ids = next((name for name in ID_COLUMNS if name in names), None)
    pictures = next((name for name in ("base64", "image") if name in names), None)
    if ids is None or pictures is None:
        raise UserError(
            f"{shown(file)} has the columns {brief(', '.join(names), 100)}; expected base64 and "
            "the ids of the pictures, as the index"
        )
    return ids, pictures


def _in_parquet(file: Path) -> Iterator[tuple[str, int, int]]:
    """(id, row group, row in there) of all pictures."""
    from tuninglab.data.reading.cells import told
    from tuninglab.data.reading.parquet import opened as parquet

    column, _ = _columns_of(file)
    with parquet(file) as table:
        for group in range(table.num_row_groups):
            first = 0
            with told(file):
                batches = table.iter_batches(1024, [group], [column], use_threads=False)
            while True:
                with told(file):
                    batch = next(batches, None)
                    ids = batch.column(0).to_pylist() if batch is not None else []
                if batch is None:
                    break
                for row, one in enumerate(ids, first):
                    yield str(one), group, row
                first += len(ids)


def _in_json(file: Path) -> Iterator[tuple[str, int, int]]:
    """(id, offset, size) of the texts in a file {id: base64}, which may be larger than memory.

    Raises:
        UserError: it is something else.
    """
    with opened(file) as descriptor:
        if os.fstat(descriptor).st_size == 0:
            raise UserError(f"{shown(file)} is empty; expected ids and pictures in base64")
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as text:
            start = re.compile(rb"\s*\{(\s*\})?").match(text)
            place, more = (start.end() if start else 0), start is not None and not start[1]
            while more:
                found = PAIR.match(text, place)
                if found is None:
                    break
                more, place = found[3] == b",", found.end()
                name = found[1].decode("utf-8", "replace")
                yield name, found.start(2), found.end(2) - found.start(2)
            if start is None or more or text[place : place + 4096].strip():
                raise UserError(
                    f"{shown(file)} is damaged at byte {place}, or no object of ids and "
                    "pictures in base64; copy it again"
                )

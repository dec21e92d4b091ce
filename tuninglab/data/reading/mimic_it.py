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
from tuninglab.data.sample import StoredPicture, brief
from tuninglab.errors import UserError
from tuninglab.untrusted import MIB, open_regular, read_text

ENDING = "_instructions.json"
BEGINNING = re.compile(rb'\s*\{\s*"(meta|data)"\s*:\s*\{')
# The largest of the released files has some 900 MB; its records refer to each other, so that all
# of it is in memory at once.
MOST_INSTRUCTIONS = 2048 * MIB
PAIR = re.compile(rb'\s*"([^"\\]{1,4096})"\s*:\s*"([^"\\]*)"\s*([,}])')
ID_COLUMNS = ("__index_level_0__", "id", "image_id")
TWICE = "ids of pictures that are there twice, the first taken"

Pictures = dict[str, Callable[[], StoredPicture]]


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
    pictures: Pictures = {}
    for store in stores:
        found = _in_parquet(store) if ending(store.name) == "parquet" else _in_json(store)
        for name, picture in found:
            if name in pictures:
                reading.notes[TWICE] += 1
            pictures.setdefault(name, picture)
    for file in files:
        instructions = _instructions(file)
        for name in instructions:
            origin = f"{shown(file)}: {brief(name, 100)}"
            try:
                yield origin, _record(name, instructions, pictures)
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


def _record(name: str, instructions: Mapping[str, Any], pictures: Pictures) -> dict[str, Any]:
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
        missing = [one for one in ids if one not in pictures]
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
        images += [pictures[one]() for one in new]
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


def _in_parquet(file: Path) -> Iterator[tuple[str, Callable[[], StoredPicture]]]:
    from tuninglab.data.reading.cells import file_state, told
    from tuninglab.data.reading.parquet import ParquetCell, opened

    size, changed = file_state(file)
    with opened(file) as table:
        names = table.schema_arrow.names
        id_column = next((name for name in ID_COLUMNS if name in names), None)
        column = next((name for name in ("base64", "image") if name in names), None)
        if id_column is None or column is None:
            raise UserError(
                f"{shown(file)} has the columns {brief(', '.join(names), 100)}; expected base64 "
                "and the ids of the pictures, as the index"
            )
        for group in range(table.num_row_groups):
            first = 0
            with told(file):
                batches = table.iter_batches(1024, [group], [id_column], use_threads=False)
            while True:
                with told(file):
                    batch = next(batches, None)
                    ids = batch.column(0).to_pylist() if batch is not None else []
                if batch is None:
                    break
                for row, one in enumerate(ids, first):
                    place = (file, size, changed, group, row, (column,))
                    yield str(one), partial(ParquetCell, *place)
                first += len(ids)


def _in_json(file: Path) -> Iterator[tuple[str, Callable[[], StoredPicture]]]:
    """Where the texts lie in a file {id: base64}, which may be larger than memory.

    Raises:
        UserError: it is something else.
    """
    descriptor = open_regular(file, "data")
    with os.fdopen(descriptor, "rb") as opened:
        if os.fstat(descriptor).st_size == 0:
            raise UserError(f"{shown(file)} is empty; expected ids and pictures in base64")
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as text:
            start = re.compile(rb"\s*\{").match(text)
            place, more = (start.end() if start else 0), start is not None
            while more:
                found = PAIR.match(text, place)
                if found is None:
                    break
                more, place = found[3] == b",", found.end()
                name = found[1].decode("utf-8", "replace")
                yield name, partial(TextSlice, file, found.start(2), len(found[2]), name)
            if start is None or more or text[place : place + 4096].strip():
                raise UserError(
                    f"{shown(file)} is damaged at byte {place}, or is no object of ids and pictures "
                    "in base64; copy it again"
                )
        opened.close()

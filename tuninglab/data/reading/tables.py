"""Tables as text, csv and tsv: a row is a record, an empty cell an absent key."""

import csv
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tuninglab.data.reading.found import Found, RawRecord, Reading
from tuninglab.data.reading.json_files import UTF16_MARKS, parse_json, shown
from tuninglab.data.sample import brief, reason
from tuninglab.errors import UserError
from tuninglab.untrusted import MIB, open_regular

# A picture of 20 MiB in base64, which some benchmarks keep in their tables, and its texts.
MOST_RECORD = 32 * MIB
# Columns that hold lists, as JSON where a table has them.
LISTS = {"messages", "conversations", "images", "answers", "choices", "options", "file_names"}
LONE_RETURN = re.compile(r"(?<=\r)(?!\n)")
MOST_COLUMNS = 10_000


def text_table(file: Path) -> Found:
    """The rows of a csv or tsv file; its first line names the columns."""
    what = "a table (tsv)" if file.suffix.lower() == ".tsv" else "a table (csv)"
    return Found(what, [file], partial(_records, file), file.parent)


def text_lines(file: Path, most: int = MOST_RECORD) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, never more than one of them in memory.

    Raises:
        UserError: it cannot be read, or a line, which is named, is not UTF-8 or too long.
    """
    with os.fdopen(open_regular(file, "data"), "rb") as opened:
        number = 0
        while True:
            try:
                line = opened.readline(most + 1)
            except OSError as error:
                raise UserError(f"{shown(file)} cannot be read: {reason(error)}") from error
            if not line:
                return
            number += 1
            if number == 1 and line.startswith(UTF16_MARKS):
                raise UserError(f"{shown(file)} is UTF-16; save it as UTF-8")
            if len(line) > most:
                raise UserError(
                    f"{shown(file)}, line {number} has more than {most // MIB} MiB; "
                    "give pictures as files"
                )
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{shown(file)}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8; "
                    "save the file as UTF-8"
                ) from None
            yield text


def _records(file: Path, reading: Reading) -> Iterator[RawRecord]:
    begun, lines = [0], [0]  # lines where the record began, and that were read

    def bounded() -> Iterator[str]:
        """The lines of the file, none of which makes a record of more than MOST_RECORD."""
        held = 0
        for text in text_lines(file):
            held = len(text) + (held if begun[0] < lines[0] else 0)
            if held > MOST_RECORD:
                raise UserError(
                    f"{shown(file)}: the record that begins in line {begun[0] + 1} has more than "
                    f"{MOST_RECORD // MIB} MiB; is a quotation mark not closed?"
                )
            # Lines of old Macs end so; inside of quotes it is a letter as any other.
            for line in LONE_RETURN.split(text) if "\r" in text else (text,):
                if line:
                    lines[0] += 1
                    yield line

    source = bounded()
    first = next(source, "")
    separator = _separator(first)
    # The limit is one of the process; it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MOST_RECORD))
    rows = csv.reader(_again(first, source), delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        begun[0] = lines[0] if header else 0
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UserError(
                f"{shown(file)}, line {begun[0] + 1}: {error}; quotation marks stand around a "
                'whole cell, and those inside are doubled ("")'
            ) from None
        if row is None:
            return
        if not header:
            header = _checked_header(row, file)
        elif any(row):
            yield f"{shown(file)}, line {begun[0] + 1}", _record(header, row)


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _separator(header: str) -> str:
    """What separates the columns, by the line that names them: a tab, a comma or a semicolon."""
    return next((one for one in "\t,;" if one in header), ",")


def _checked_header(row: list[str], file: Path) -> list[str]:
    names = [name.strip() for name in row]
    twice = {name for name in names if name and names.count(name) > 1} if len(names) < 999 else ()
    if not any(names) or len(names) > MOST_COLUMNS or twice:
        what = f"names {brief(min(twice))} twice" if twice else f"has {len(names)} names"
        raise UserError(
            f"{shown(file)}: the first line {what}; it has to name every column once "
            "(image,question,answer)"
        )
    return names


def _record(header: list[str], row: list[str]) -> dict[str, Any] | ValueError:
    if len(row) != len(header):
        return ValueError(
            f"the row has {len(row)} cells, the first line names {len(header)}; put quotation "
            "marks around cells with a separator in them"
        )
    # A column without a name is the row number that pandas writes.
    cells = {name: cell for name, cell in zip(header, row, strict=True) if name and cell}
    for name in LISTS & cells.keys():
        if cells[name].lstrip().startswith("["):
            try:
                cells[name] = parse_json(cells[name])
            except ValueError as error:
                return ValueError(f"{name} holds broken JSON: {error}")
    return cells

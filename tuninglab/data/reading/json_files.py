"""JSON files to raw records: lists, whole documents and JSON lines, told apart by content."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from tuninglab.data.reading.found import RawRecord
from tuninglab.data.sample import brief, reason
from tuninglab.errors import UserError

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BOM = b"\xef\xbb\xbf"
# Control characters that no encoding of text uses: pickles, archives and pictures are full of them.
NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
# What a file of JSON lines holds, as a whole.
LINES = object()
EXPECTED = "expected a JSON list, or one JSON object a line (.jsonl); correct it there"


def read_records(path: Path) -> list[RawRecord]:
    """All records of a JSON list or of JSON lines, as `records_of` gives them.

    Raises:
        UserError: as `read_json_file` and `json_lines`, or it is a document of another kind.
    """
    document = read_json_file(path)
    return list(json_lines(path) if document is LINES else list_records(document, path))


def read_json_file(path: Path, is_document: Callable[[Any], bool] = lambda _: False) -> Any:
    """What a JSON file holds; LINES where each line is a record of its own, to be read by lines.

    Lines are read one after another, in any number; a document is read whole.

    Args:
        path: the file.
        is_document: whether an object that is alone on one line is more than a record.

    Raises:
        UserError: the file is missing, no regular file, not UTF-8, broken, or empty.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            if _is_json_lines(file, is_document):
                return LINES
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    text = _decoded(data, path)
    if not text.strip():
        raise UserError(f"{shown(path)} is empty; expected a JSON list of records or JSON lines")
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{shown(path)}: broken JSON at line {error.lineno}, column {error.colno}: "
            f"{error.msg}; {EXPECTED}"
        ) from None
    except ValueError as error:
        raise UserError(f"{shown(path)}: {error}") from None


def json_lines(path: Path, note: Callable[[int], None] = lambda _: None) -> Iterator[RawRecord]:
    """The records of a file of JSON lines as (origin, value); lines count from 1.

    A line that cannot be parsed stands there as the ValueError that says why, so that it is one bad
    record among others.

    Args:
        path: the file.
        note: is called with the number of bytes that were read.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    read, number = 0, 0
    try:
        with path.open("rb") as file:
            for piece in file:
                # A piece ends at its "\n"; on old Macs lines ended at "\r" alone.
                for line in re.split(rb"\r(?=.)", piece.removesuffix(b"\n"), flags=re.DOTALL):
                    number += 1
                    text = _decoded_line(line, path, number, read).strip()
                    if text:
                        yield f"{shown(path)}, line {number}", _parsed_line(text)
                read += len(piece)
                note(read)
    except OSError as error:
        raise _unreadable(path, error) from error


def list_records(document: Any, path: Path) -> Iterator[RawRecord]:
    """The records of a JSON list, or the single record that a document is, counted from 1.

    Raises:
        UserError: it is neither, or holds no records.
    """
    # A single record, written out over several lines.
    if isinstance(document, dict) and ("messages" in document or "conversations" in document):
        document = [document]
    if not isinstance(document, list):
        raise UserError(
            f"{shown(path)} holds {described(document)}; expected a JSON list of records, or one "
            "record a line"
        )
    if not document:
        raise UserError(f"{shown(path)} holds an empty list; expected at least one record")
    for number, value in enumerate(document, 1):
        yield f"{shown(path)}, record {number}", value


def described(document: Any) -> str:
    """A JSON value in words, an object with the first of its keys."""
    what = brief(document)
    if isinstance(document, dict) and document:
        what += f" with the keys {', '.join(brief(key, 30) for key in list(document)[:5])}"
    return what


def shown(path: Path) -> str:
    """A path as text that every stream can print, also where the name is not valid Unicode."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def check_file(path: Path) -> None:
    """Pass if a data file is there and can be read; what it holds is not looked at.

    Raises:
        UserError: it is missing, no regular file, or not readable.
    """
    try:
        if path.is_dir():
            raise UserError(f"{shown(path)} is a folder; name the data file inside it")
        if not path.exists():
            raise UserError(f"{shown(path)} does not exist; check the path")
        # A pipe or device would be waited for without end, or read without end.
        if not path.is_file():
            raise UserError(f"{shown(path)} is no regular file; expected a data file")
        path.open("rb").close()
    except (OSError, ValueError) as error:  # no permission, or a name that the system refuses
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{shown(path)} cannot be read: {reason(error)}; check its name and permissions"
    )


def _is_json_lines(file: BinaryIO, is_document: Callable[[Any], bool]) -> bool:
    """True if every line is meant as a record of its own.

    A record on one line ends with its brace. The last test is for a file whose first line is the
    broken one: some other begins as a record does. A broken document that is indented fulfils
    neither.
    """
    lines = (line.strip() for piece in file for line in re.split(rb"[\r\n]", piece))
    filled = (line for line in (line.removeprefix(BOM).removeprefix(BOM) for line in lines) if line)
    first = next(filled, b"")
    if not first.startswith(b"{"):
        return False
    value, second = _try(first), next(filled, None)
    if second is None:
        # A record, also where it breaks off, so that the message names the line; or a document,
        # which exporters write on one line.
        return not (isinstance(value, dict) and is_document(value))
    if isinstance(value, dict):
        return True
    # A record written out over several lines. JSON lines fail behind the first record.
    rest = [first, second, *filled]
    if _try(b"\n".join(rest)) is not None:
        return False
    return first.endswith(b"}") or any(line.startswith(b'{"') for line in rest[1:])


def _try(data: bytes) -> Any:
    """The value of a JSON text, None where it is broken."""
    with suppress(ValueError, UnicodeDecodeError):
        return parse_json(data.decode("utf-8"))
    return None


def _decoded(data: bytes, path: Path) -> str:
    """The text of a UTF-8 file, without byte order mark."""
    if data.startswith(UTF16_MARKS):
        raise UserError(f"{shown(path)} is UTF-16; save it as UTF-8")
    # Files joined by `cat` from Windows tools carry more than one mark.
    return _text(data, path, 1, 0).lstrip("\ufeff")


def _decoded_line(line: bytes, path: Path, number: int, offset: int) -> str:
    if number == 1 and line.startswith(UTF16_MARKS):
        raise UserError(f"{shown(path)} is UTF-16; save it as UTF-8")
    return _text(line, path, number, offset).lstrip("\ufeff")


def _text(data: bytes, path: Path, line: int, offset: int) -> str:
    """Bytes as text; they begin in a line of the file and at an offset in bytes."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if NO_TEXT.search(data):
            raise UserError(f"{shown(path)} is no text; expected UTF-8 JSON") from None
        line += data.count(b"\n", 0, error.start)
        raise UserError(
            f"{shown(path)}, line {line}: byte 0x{data[error.start]:02x} (offset "
            f"{offset + error.start}) is not UTF-8; save the file as UTF-8"
        ) from None
    # UTF-16 of ASCII text is valid UTF-8 with a NUL after each letter.
    if "\0" in text:
        line += text.count("\n", 0, text.index("\0"))
        raise UserError(
            f"{shown(path)}, line {line}: a NUL byte; this is UTF-16 without its mark (save it as "
            "UTF-8), or is no text; expected UTF-8 JSON"
        )
    return text


def _parsed_line(line: str) -> Any:
    try:
        return parse_json(line)
    except json.JSONDecodeError as error:
        return ValueError(f"broken JSON at column {error.colno}: {error.msg}; {EXPECTED}")
    except ValueError as error:
        return error


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: whatever is wrong with it, as JSONDecodeError where it is no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:  # 100,000 brackets fit into 100 kB
        raise ValueError("brackets nested too deeply to be a record; correct or drop it") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python refuses to read integers of more than 4,300 digits
        raise ValueError("a number with too many digits; correct or drop it") from None

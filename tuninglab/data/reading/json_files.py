"""Data files to raw records: JSON (a list) and JSON lines, told apart by content, not by name."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuninglab.data.sample import brief, reason
from tuninglab.errors import UserError

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# Control characters that no encoding of text uses: pickles, archives and pictures are full of them.
NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
EXPECTED = "expected a JSON list, or one JSON object a line (.jsonl); correct it there"


def read_records(path: Path) -> list[tuple[str, Any]]:
    """All records of a data file as (origin, value), both counted from 1.

    A line of a JSONL file that cannot be parsed stands there as the ValueError that says why, so
    that it is one bad record among others; a broken JSON list has no records at all.

    Raises:
        UserError: the file is missing, no regular file, not UTF-8, broken, or holds no records.
    """
    text = _read_text(path)
    # Not splitlines(): it also cuts at U+2028 and others, which may stand inside JSON strings.
    lines = re.split("\r\n|\r|\n", text)
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"{shown(path)} is empty; expected a JSON list of records or JSON lines")
    if _is_json_lines([line.strip() for _, line in numbered], text):
        return [(f"{shown(path)}, line {number}", _parsed_line(line)) for number, line in numbered]
    # A list that breaks off has no trustworthy records before the break either.
    records = _whole_document(text, path)
    if not records:
        raise UserError(f"{shown(path)} holds an empty list; expected at least one record")
    return [(f"{shown(path)}, record {number}", value) for number, value in enumerate(records, 1)]


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
            raise UserError(f"{shown(path)} is no regular file; expected a JSON or JSONL file")
        path.open("rb").close()
    except (OSError, ValueError) as error:  # no permission, or a name that the system refuses
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{shown(path)} cannot be read: {reason(error)}; check its name and permissions"
    )


def _read_text(path: Path) -> str:
    """The text of a UTF-8 file, without byte order mark."""
    check_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    if data.startswith(UTF16_MARKS):
        raise UserError(f"{shown(path)} is UTF-16; save it as UTF-8")
    try:
        # Files joined by `cat` from Windows tools carry more than one mark.
        text = data.decode("utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        if NO_TEXT.search(data):
            raise UserError(f"{shown(path)} is no text; expected UTF-8 JSON") from None
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{shown(path)}, line {line}: byte 0x{data[error.start]:02x} (offset {error.start}) "
            "is not UTF-8; save the file as UTF-8"
        ) from None
    # UTF-16 of ASCII text is valid UTF-8 with a NUL after each letter.
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(
            f"{shown(path)}, line {line}: a NUL byte; this is UTF-16 without its mark (save it as "
            "UTF-8), or is no text; expected UTF-8 JSON"
        )
    return text


def _is_json_lines(lines: list[str], text: str) -> bool:
    """True if every line is meant as a record of its own.

    A record on one line ends with its brace; the second test is for a file whose first line is the
    broken one. A broken JSON document that is indented fulfils neither.
    """
    if not lines[0].startswith("{"):
        return False
    if len(lines) == 1:  # also where it breaks off: the message then names the line
        return True
    with suppress(ValueError):
        # A record written out over several lines. JSON lines fail behind the first record.
        parse_json(text)
        return False
    return lines[0].endswith("}") or any(line.startswith('{"') for line in lines[1:])


def _parsed_line(line: str) -> Any:
    try:
        return parse_json(line)
    except json.JSONDecodeError as error:
        return ValueError(f"broken JSON at column {error.colno}: {error.msg}; {EXPECTED}")
    except ValueError as error:
        return error


def _whole_document(text: str, path: Path) -> list[Any]:
    try:
        document = parse_json(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{shown(path)}: broken JSON at line {error.lineno}, column {error.colno}: "
            f"{error.msg}; {EXPECTED}"
        ) from None
    except ValueError as error:
        raise UserError(f"{shown(path)}: {error}") from None
    # A single record, written out over several lines.
    if isinstance(document, dict) and ("messages" in document or "conversations" in document):
        return [document]
    if not isinstance(document, list):
        what = brief(document)
        if isinstance(document, dict):
            what += f" with the keys {', '.join(brief(key, 30) for key in list(document)[:5])}"
        raise UserError(
            f"{shown(path)} holds {what}; expected a JSON list of records, or one record a line"
        )
    return document


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

"""Files of one key, `7.jpg`, `7.txt` and `7.json`, as one record: of shards and of folders."""

import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tuninglab.data.reading.folders import PICTURE_ENDINGS
from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.json_files import parse_json
from tuninglab.data.reading.picture_keys import ABOUT, NO_CAPTION, NO_PICTURE, about_fetched
from tuninglab.data.sample import ImageSource, brief

TEXTS = {"txt", "text", "caption"}
MOVING = {"mp4", "avi", "mov", "mkv", "webm", "wav", "mp3", "flac", "ogg", "m4a"}
DIALOGUES = ("messages", "conversations", "conversation")
MOST_FILES = 1000  # of one key
MOST_TEXT = 2**24  # bytes
MOST_NOTES = 100


@dataclass(frozen=True)
class KeyedFile:
    """One of the files of a key.

    Args:
        field: its name behind the key, "jpg" or "0.jpg".
        picture: what a record has in its place if it is a picture.
        size: in bytes.
        read: its bytes.
    """

    field: str
    picture: ImageSource
    size: int
    read: Callable[[], bytes]

    @property
    def kind(self) -> str:
        """The last part of the field, in small letters."""
        return self.field.rpartition(".")[2].lower()


def split_key(name: str) -> tuple[str, str] | None:
    """A path up to the first dot of its base name, and the rest; None where one is empty."""
    folder, base = posixpath.split(name)
    key, _, field = base.partition(".")
    return (posixpath.join(folder, key), field) if key and field else None


def record_of(key: str, files: Sequence[KeyedFile], reading: Reading) -> dict[str, Any] | None:
    """The record that the files of one key are; None if it is left out, which the notes count.

    A text is the caption, and JSON beside it only tells about the picture; JSON without a text is
    a whole record, to which the pictures are added.

    Raises:
        ValueError: two files have one name, a text or JSON is broken, there are several or both
            hold a dialogue, or one is a film or a sound.
    """
    fields = [file.field for file in files]
    # A name need not be UTF-8, what is written of it must.
    name = key.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(files) > MOST_FILES:
        raise ValueError(f"{name!r} has more than {MOST_FILES:,} files; a sample has a few")
    if len(set(fields)) < len(fields):
        twice = next(one for one in fields if fields.count(one) > 1)
        raise ValueError(f"{name!r} has {twice} more than once; keep one")
    kinds = {file.kind: file for file in files}
    if moving := MOVING & kinds.keys():
        raise ValueError(f".{min(moving)} is film or sound; only pictures and texts are learned")
    texts = [file for file in files if file.kind in TEXTS]
    notes = [file for file in files if file.kind == "json"]
    for kind in kinds.keys() - TEXTS - PICTURE_ENDINGS - {"json"}:
        # The names are anybody's: neither long nor many of them are kept.
        known = kind.isalnum() and len(kind) < 12 and len(reading.notes) < MOST_NOTES
        reading.notes[f"files .{kind} not read" if known else "files of other kinds not read"] += 1
    if len(texts) > 1 or len(notes) > 1:
        names = ", ".join(brief(file.field) for file in [*texts, *notes])
        raise ValueError(f"several texts ({names}); keep one .txt or .json a key")
    pictures = _in_order([file for file in files if file.kind in PICTURE_ENDINGS])
    told = _json(notes[0]) if notes else {}
    if texts:
        if any(told.get(name) is not None for name in DIALOGUES):
            raise ValueError(".txt and .json both hold what is to be learned; keep one of the two")
        told = {"id": told.get("id", name), "text": _text(texts[0]).rstrip("\r\n")}
    elif told.keys() >= ABOUT:
        told = about_fetched(told)
    else:
        told = {"id": name} | told
    if not (told.keys() - {"id"}) or (texts and not told["text"].strip()):
        reading.notes[NO_CAPTION] += 1
        return None
    if texts and not pictures:
        reading.notes[NO_PICTURE] += 1
        return None
    return _with_pictures(told, pictures, key)


def _in_order(pictures: list[KeyedFile]) -> list[KeyedFile]:
    """By number where all have one (10.jpg behind 9.jpg), else as they stand."""
    numbers = [file.field.rpartition(".")[0] for file in pictures]
    if all(number.isascii() and number.isdigit() and len(number) < 20 for number in numbers):
        return [pictures[i] for i in sorted(range(len(pictures)), key=lambda i: int(numbers[i]))]
    return pictures


def _text(file: KeyedFile) -> str:
    if file.size > MOST_TEXT:
        raise ValueError(f".{file.field} has {file.size:,} bytes; at most {MOST_TEXT:,} are read")
    try:
        return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f".{file.field} is not UTF-8 (byte {error.start})") from None


def _json(file: KeyedFile) -> dict[str, Any]:
    try:
        value = parse_json(_text(file))
    except ValueError as error:
        raise ValueError(f"broken JSON: {error}") from None
    # Energon's shards hold the turns alone.
    if isinstance(value, list) and value and isinstance(value[0], dict):
        if "from" in value[0] or "role" in value[0]:
            return {"conversations" if "from" in value[0] else "messages": value}
    if not isinstance(value, dict):
        raise ValueError(f".{file.field} holds {brief(value)}; expected an object, a record")
    return value


def _with_pictures(record: dict[str, Any], files: list[KeyedFile], key: str) -> dict[str, Any]:
    """A record with the pictures of its key in the place of the names that it gives them.

    Raises:
        ValueError: it names others, or another number of them.
    """
    named = [name for name in ("image", "images") if record.get(name) is not None]
    pictures = [file.picture for file in files]
    if not pictures:
        return record
    if len(named) > 1:
        raise ValueError('the record has both "image" and "images"; keep one of the two')
    given = record.pop(named[0]) if named else None
    names = given if isinstance(given, list) else [] if given is None else [given]
    base = posixpath.basename(key)
    by_name = {alias: f.picture for f in files for alias in (f.field, f"{base}.{f.field}")}
    found = [by_name.get(posixpath.basename(name)) for name in names if isinstance(name, str)]
    if names and None not in found and len(found) == len(names):
        pictures = [picture for picture in found if picture is not None]
    elif names and len(names) != len(pictures):
        raise ValueError(
            f"the record names {len(names)} pictures, but {len(pictures)} lie beside it"
        )
    return record | ({"image": pictures[0]} if len(pictures) == 1 else {"images": pictures})

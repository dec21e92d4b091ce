"""The members of a tar by their headers alone: names, places and sizes; nothing is unpacked."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tuninglab.data.reading.json_files import shown
from tuninglab.errors import UserError
from tuninglab.untrusted import LONGEST_PATH, open_regular

BLOCK = 512
ZEROS = bytes(BLOCK)
# Behind the mark of the end tars are filled up to a record, 10 KiB unless told otherwise.
FILLING = 2**20
MOST_EXTENDED = 2**20  # bytes of an extended header; names are at most 4 KiB
REGULAR, LINKS, FOLDER, LABEL = b"0\0007", b"12", b"5", b"V"
LINES = re.compile(rb"(\d{1,9}) ([^=\n]+)=")
PACK_ANEW = "pack it anew: tar --format=pax --hard-dereference -cf NEW.tar FOLDER"


class Member(NamedTuple):
    """A file in a tar, or a link, which has a place but no bytes."""

    name: str
    offset: int
    size: int
    link: bool


@contextmanager
def opened(file: Path) -> Iterator[int]:
    """A descriptor of a tar, closed at the end.

    Raises:
        UserError: there is no such file, or it is no regular one.
    """
    descriptor = open_regular(file, "data")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def members(descriptor: int, file: Path) -> Iterator[Member]:
    """The files and links of a tar in order; folders are passed over.

    Raises:
        UserError: it is no tar, damaged, cut off, or holds what has no bytes of its own (sparse
            files, parts of several volumes); it names the tar and the member.
    """
    size, place = os.fstat(descriptor).st_size, 0
    extended: dict[str, bytes] = {}
    while place < size:
        header = os.pread(descriptor, BLOCK, place)
        if header == ZEROS:
            _check_end(descriptor, file, place, size)
            return
        try:
            name, length, kind = _read_header(header)
        except ValueError as error:
            what = f"is damaged at byte {place} ({error})" if place else f"is no tar ({error})"
            raise UserError(f"{shown(file)} {what}; download or copy it again") from None
        place += BLOCK
        if kind in b"xXgLK":
            if length > MOST_EXTENDED:
                raise UserError(f"{shown(file)}: an extended header of {length:,} bytes at {place}")
            content = os.pread(descriptor, length, place)
            _note_extended(extended, kind, content, length, file)
            place += _padded(length)
            continue
        name, length = _as_extended(extended, name, length)
        extended = {}
        text = name.decode("utf-8", "surrogateescape")
        if kind not in REGULAR + LINKS + FOLDER + LABEL + b"346":
            what = "sparse" if kind == b"S" else f"of kind {ascii(kind.decode('latin-1'))}"
            raise UserError(f"{shown(file)}: {_said(text)} is {what}; {PACK_ANEW}")
        # Only files have bytes, whatever the headers of the others say; so it is for every reader.
        # The oldest tars tell folders by their slash alone.
        if kind not in REGULAR or (kind == b"\0" and name.endswith(b"/")):
            if kind in LINKS:
                yield Member(text, place, 0, True)
            continue
        if place + length > size:
            raise UserError(
                f"{shown(file)} is cut off in {_said(text)}: {place + length - size:,} bytes are "
                "missing; download or copy it again"
            )
        yield Member(text, place, length, False)
        place += _padded(length)
    if extended or place > size:
        raise UserError(f"{shown(file)} is cut off behind its last header; copy it again")


def _read_header(header: bytes) -> tuple[bytes, int, bytes]:
    """Name, size and kind in a header of 512 bytes; ValueError: it is none."""
    if len(header) < BLOCK:
        raise ValueError("cut off")
    stored = _number(header[148:156])
    # The sum counts its own place as spaces.
    blank = sum(header) - sum(header[148:156]) + 8 * 32
    if stored != blank:
        # Some old programs added up letters beyond ASCII as negative numbers.
        beyond = sum(byte > 127 for byte in header[:148] + header[156:])
        if stored != blank - 256 * beyond:
            raise ValueError("a header's checksum is wrong")
    name = header[:100].split(b"\0", 1)[0]
    # GNU's own format, which says "ustar  ", has times where others have the rest of the name.
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name, _number(header[124:136]), header[156:157]


def _number(field: bytes) -> int:
    """Octal digits, or beyond 8 GiB a binary number behind a mark."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if digits and not digits.isdigit():
        raise ValueError("a number in a header is none")
    return int(digits or b"0", 8)


def _note_extended(
    extended: dict[str, bytes], kind: bytes, content: bytes, length: int, file: Path
) -> None:
    """Keep what an extended header says of the next member.

    Raises:
        UserError: it is cut off, damaged, tells of sparse files, or names all members at once.
    """
    if len(content) < length:
        raise UserError(f"{shown(file)} is cut off in an extended header; copy it again")
    if kind in b"LK":  # GNU's long names, of the member and of what it links to
        if kind == b"L":
            extended.setdefault("path", content.split(b"\0", 1)[0])
        return
    place = 0
    while place < length and content[place]:
        line = LINES.match(content, place)
        end = place + int(line[1]) if line else 0
        if line is None or not line.end() < end <= length or content[end - 1] != 10:
            raise UserError(f"{shown(file)}: an extended header is damaged; copy it again")
        key, place = line[2].decode("utf-8", "replace"), end
        value = content[line.end() : end - 1]
        if key.startswith("GNU.sparse") or (kind == b"g" and key in ("path", "size")):
            raise UserError(f"{shown(file)}: {key} in an extended header; {PACK_ANEW}")
        number = value.isdigit() and len(value) < 20
        if (key == "size" and not number) or (key == "path" and len(value) > LONGEST_PATH):
            raise UserError(f"{shown(file)}: {key} in an extended header is wrong; copy it again")
        if kind != b"g" and key in ("path", "size"):
            extended[key] = value


def _as_extended(extended: dict[str, bytes], name: bytes, length: int) -> tuple[bytes, int]:
    return extended.get("path", name), int(extended.get("size", length))


def _check_end(descriptor: int, file: Path, place: int, size: int) -> None:
    """Pass if nothing but zeros follows the mark of the end; readers would stop there in silence.

    Raises:
        UserError: there is more.
    """
    for start in range(place, min(size, place + FILLING), 2**16):
        if os.pread(descriptor, 2**16, start).strip(b"\0"):
            raise UserError(
                f"{shown(file)} goes on behind its end: tars were joined by `cat`; give them one "
                "by one, or join them with tar --concatenate"
            )


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _said(name: str) -> str:
    return ascii(name[:200]) if not name.isprintable() else name[:200]

"""Pictures that lie whole in a larger file, a tar or one of our own: a place and a size."""

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuninglab.data.picture_files import MAX_BYTES
from tuninglab.data.sample import StoredPicture
from tuninglab.errors import UserError
from tuninglab.untrusted import MIB, open_regular


@dataclass(frozen=True)
class Slice(StoredPicture):
    """Bytes of a larger file that are the file of a picture.

    Args:
        file: the larger one.
        offset: of the first byte.
        size: in bytes.
        member: what the larger file calls it.
        changed: when the larger file had last been changed as its members were found, in
            nanoseconds; 0: not known.
    """

    file: Path
    offset: int
    size: int
    member: str
    changed: int = 0

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.file}: {self.member}"

    def read(self) -> bytes:
        """The bytes of the picture's file.

        Raises:
            UserError: it is too large; the larger file is gone, cannot be read or has changed.
        """
        # Tars with holes claim any size, and take no room on a disk.
        if self.size > MAX_BYTES:
            raise UserError(f"{self.name} is larger than {MAX_BYTES // MIB} MiB; make it smaller")
        descriptor = open_regular(self.file, "data")
        try:
            now = os.fstat(descriptor).st_mtime_ns
            data = os.pread(descriptor, self.size, self.offset)
        except OSError as error:
            raise UserError(f"{self.name} cannot be read: {error.strerror}") from error
        finally:
            os.close(descriptor)
        # Other bytes may lie at the same place by now, those of another picture at worst.
        if len(data) < self.size or self.changed not in (0, now):
            raise UserError(f"{self.name}: {self.file} has changed since it was read; start anew")
        return data


@dataclass(frozen=True)
class TextSlice(Slice):
    """As `Slice`, where the bytes are text: base64 of the file of a picture."""

    def read(self) -> bytes:
        """The bytes of the picture's file.

        Raises:
            UserError: as `Slice`, or it is no base64.
        """
        return picture_bytes(super().read().decode("latin-1"), self.name)


def picture_bytes(value: Any, name: str) -> bytes:
    """What a place for a picture holds: bytes, or base64 with or without `data:...,` before it.

    Raises:
        UserError: it holds neither, or too much; the message calls it by `name`.
    """
    if isinstance(value, str):
        text = value.partition(",")[2] if value.startswith("data:") else value
        try:
            # Some programs break lines after 76 letters.
            value = base64.b64decode("".join(text.split()).encode("ascii"), validate=True)
        except ValueError as error:
            raise UserError(f"{name} is no base64 ({error}); expected a picture") from None
    if not isinstance(value, bytes):
        raise UserError(f"{name} holds no picture: its bytes are missing")
    if len(value) > MAX_BYTES:
        raise UserError(f"{name} is larger than {MAX_BYTES // MIB} MiB; make it smaller")
    return value


@dataclass(frozen=True)
class OwnPicture(Slice):
    """A picture whose bytes stood in its record; they were written into a file of our own."""

    @property
    def name(self) -> str:
        """What messages call it: the record is named beside."""
        return self.member

"""Pictures that lie whole in a larger file, a tar or one of our own: a place and a size."""

import os
from dataclasses import dataclass
from pathlib import Path

from tuninglab.data.sample import StoredPicture
from tuninglab.errors import UserError
from tuninglab.untrusted import open_regular


@dataclass(frozen=True)
class Slice(StoredPicture):
    """Bytes of a larger file that are the file of a picture.

    Args:
        file: the larger one.
        offset: of the first byte.
        size: in bytes.
        member: what the larger file calls it.
    """

    file: Path
    offset: int
    size: int
    member: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.file}: {self.member}"

    def read(self) -> bytes:
        """The bytes of the picture's file.

        Raises:
            UserError: the larger file is gone, cannot be read or has become shorter.
        """
        descriptor = open_regular(self.file, "data")
        try:
            data = os.pread(descriptor, self.size, self.offset)
        except OSError as error:
            raise UserError(f"{self.name} cannot be read: {error.strerror}") from error
        finally:
            os.close(descriptor)
        if len(data) < self.size:
            raise UserError(f"{self.name} ends early: {self.file} has changed since it was read")
        return data

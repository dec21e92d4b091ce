"""What samples come from: a Source. Those of a data file, in memory, are one."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tuninglab.data.picture_files import open_picture
from tuninglab.data.sample import ImageSource, StoredPicture


class Source(Sequence[Any], ABC):
    """Samples by number, each made when it is asked for; which comes when is the sampler's affair.

    So a run's position is one integer, whatever its data is: a file, a generator, a mixture.
    """

    # Records that were left out.
    skipped: int = 0

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A sha256 over what determines the samples; drawing or reading them all is not needed."""

    @property
    def content(self) -> str:
        """A sha256 over what the samples are, wherever their pictures lie; those may be read."""
        return self.fingerprint


@dataclass
class Records(Source):
    """Samples in memory, and what was wrong with the records of their file that were left out.

    Args:
        samples: dialogues (`Sample`) or texts (`Pair`).
        problems: a line about each mistake; a record may have several.
        skipped: how many records were left out.
    """

    samples: list[Any]
    problems: list[str] = field(default_factory=list)
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[index]

    @property
    def fingerprint(self) -> str:
        """Of texts by content, of picture files by path, size and time of change."""
        return fingerprint(map(_content, self.samples))

    @property
    def content(self) -> str:
        """Of texts and of the bytes of picture files; raises OSError if one cannot be read."""
        pictures = [p for sample in self.samples for p in getattr(sample, "images", ())]
        # In threads, as they were checked: hashing waits for the disk, and holds no lock.
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(picture_digest, pictures))
        said = (_content(sample, with_pictures=False) for sample in self.samples)
        return fingerprint([digests, *said])


@dataclass
class Splits:
    """Training and validation samples, what to call them in the report, and the records left out.

    Samples are dialogues (`Sample`) or texts (`Pair`).
    """

    name: str
    train: Source
    val: Source
    skipped: int = 0


def fingerprint(parts: Iterable[Any]) -> str:
    """A sha256 over what the parts print as; they hold plain values only."""
    total = hashlib.sha256()
    for part in parts:
        # With its length, so that no part can end as the next one begins.
        text = ascii(part)
        total.update(f"{len(text)}:{text}".encode())
    return total.hexdigest()


def picture_digest(picture: ImageSource) -> str:
    """A sha256 of a picture: of the bytes of its file, or of the pixels of a PIL image.

    Raises:
        UserError: the file cannot be opened.
        OSError: it cannot be read.
    """
    if isinstance(picture, str | os.PathLike):
        with open_picture(picture) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(picture, Image.Image):
        picture = f"{picture.mode} {picture.size} ".encode() + picture.tobytes()
    return hashlib.sha256(
        picture.read() if isinstance(picture, StoredPicture) else picture
    ).hexdigest()


def _content(sample: Any, with_pictures: bool = True) -> list[Any]:
    # Where a sample came from is not what it says.
    said = {name: value for name, value in vars(sample).items() if name not in ("images", "origin")}
    pictures = getattr(sample, "images", ())
    return [said, [_stamp(picture) for picture in pictures] if with_pictures else len(pictures)]


def _stamp(picture: ImageSource) -> Any:
    if not isinstance(picture, str | os.PathLike):
        return picture_digest(picture)
    file = os.stat(picture)
    return os.fspath(picture), file.st_size, file.st_mtime_ns

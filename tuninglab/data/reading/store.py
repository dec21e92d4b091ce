"""Samples kept on disk, one a line, and read by their place: memory does not grow with the data."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tuninglab.data.picture_files import ConfinedPath
from tuninglab.data.reading.slices import OwnPicture, Slice, TextSlice
from tuninglab.data.sample import ImageSource, Sample, StoredPicture
from tuninglab.data.sources import Source, fingerprint
from tuninglab.errors import UserError

SAMPLES, OWN_PICTURES = "samples.jsonl", "own-pictures.bin"
# In the place of the label of the data, which no text that begins with a path has.
MARK = "\0"


@dataclass
class Table:
    """What is known of the samples and pictures of a set without reading them: arrays.

    Args:
        starts: offset of each sample's line in the file of samples (N,).
        sizes: of the lines in bytes (N,).
        records: number of the record that each sample came from (N,).
        counts: how many pictures each sample has (N,).
        pictures: numbers of the samples' pictures, one sample after another (sum of counts,).
        digests: of the pictures by number, as `Looked.digest` (M,).
        heads: of the same, as `Looked.head` (M,).
        groups: of the pictures, where they are best read together; -1: no matter where (M,).
    """

    starts: np.ndarray
    sizes: np.ndarray
    records: np.ndarray
    counts: np.ndarray
    pictures: np.ndarray
    digests: np.ndarray
    heads: np.ndarray
    groups: np.ndarray

    def of(self, numbers: np.ndarray) -> "Table":
        """The table of some of the samples, by number."""
        kept = {n: getattr(self, n)[numbers] for n in ("starts", "sizes", "records", "counts")}
        first, counts = (np.cumsum(self.counts) - self.counts)[numbers], kept["counts"]
        # Of each picture, how far it is behind the place that it would have in the new table.
        moved = np.repeat(first - (np.cumsum(counts) - counts), counts)
        pictures = self.pictures[np.arange(len(moved)) + moved]
        return replace(self, **kept, pictures=pictures)

    def is_exact(self) -> bool:
        """Whether all pictures were read whole, so that `digests` tell any two apart."""
        used = np.unique(self.pictures)
        return bool((self.digests[used] != self.heads[used]).all())

    def row_groups(self) -> np.ndarray:
        """The group of each sample's first picture; -1 where it has none (N,)."""
        first = np.cumsum(self.counts) - self.counts
        found = np.full(len(self.counts), -1, np.int64)
        seen = self.counts > 0
        found[seen] = self.groups[self.pictures[first[seen]]]
        return found

    def pictures_of(self) -> Iterator[np.ndarray]:
        """The numbers of each sample's pictures."""
        end = 0
        for count in self.counts.tolist():
            yield self.pictures[end : end + count]
            end += count


@dataclass
class StoredSamples(Source):
    """Samples of a file that this program wrote, read when they are asked for.

    The file is opened once: whoever reads the data anew meanwhile puts another in its place. A
    worker that is spawned opens it again.

    Args:
        folder: holds the file.
        root: the folder that names of pictures start from.
        label: what messages call the data.
        table: places of the lines, and what is known of the pictures.
        moved: names of pictures whose links lead elsewhere below the root, and where to.
        digest: of the texts of all samples in the file.
        problems: a line about each of the first mistakes; a record may have several.
        skipped: how many records are left out.
        files: that the samples were read from: size and time of change (ns) of each.
        window: groups of rows that one process holds, where there are such.
    """

    folder: Path
    root: Path
    label: str
    table: Table
    moved: Mapping[str, str]
    digest: str
    problems: list[str] = field(default_factory=list)
    skipped: int = 0
    files: Mapping[str, Sequence[int]] = field(default_factory=dict)
    window: int = 1
    _descriptor: int | None = field(default=None, init=False, repr=False, compare=False)
    _file_number: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self):
        self._file()

    def __del__(self):
        if self._descriptor is not None:
            os.close(self._descriptor)

    def __len__(self) -> int:
        return len(self.table.starts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        size = int(self.table.sizes[number])
        line = os.pread(self._file(), size, int(self.table.starts[number]))
        origin, _, rest = line.partition(b"\t")
        try:
            return self._sample(json.loads(origin), json.loads(rest))
        except ValueError as error:
            raise UserError(
                f"{self.folder} is damaged, where {self.label} is kept; delete that folder"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    @property
    def fingerprint(self) -> str:
        """A sha256 over texts and pictures, as far as these were read."""
        pictures = hashlib.sha256(self.table.digests.tobytes()).hexdigest()
        return fingerprint([self.digest, pictures])

    def _file(self) -> int:
        # A forked worker has a descriptor of its own; pread asks for no position.
        if self._descriptor is None:
            self._descriptor = os.open(self.folder / SAMPLES, os.O_RDONLY)
            number = os.fstat(self._descriptor).st_ino
            if self._file_number not in (0, number):
                raise UserError(f"{self.label} was read anew by another process; start again")
            self._file_number = number
        return self._descriptor

    def _sample(self, origin: str, line: dict[str, Any]) -> Sample:
        images = [self._picture(image) for image in line.pop("images")]
        line |= {name: tuple(line.get(name, ())) for name in ("answers", "options")}
        # The line was written of a sample, and by this program.
        return Sample.known(images=images, origin=with_label(origin, self.label), **line)

    def _picture(self, image: Any) -> ImageSource:
        if isinstance(image, str):
            return ConfinedPath(self.root / self.moved.get(image, image))
        kind = stored_class(image.pop("kind"))
        # Those that stood in the records themselves lie beside the samples.
        folder = self.folder if kind is OwnPicture else self.root
        image["file"] = folder / image["file"]
        size, changed = self.files.get(os.fspath(image["file"]), (0, 0))
        if "place" in image:
            image["place"] = tuple(image["place"])
            image["size"] = size
        image["changed"] = changed
        return kind(**image)


def to_line(sample: Sample, label: str, *roots: Path) -> tuple[bytes, bytes]:
    """A sample as the two parts of a line: where it came from, and all else.

    Args:
        sample: its pictures are names, or pictures in larger files.
        label: of the data, which may be named otherwise when the line is read.
        roots: folders that the names of larger files start from, where they lie below one.
    """
    images = [saved_picture(image, roots) for image in sample.images]
    line: dict[str, Any] = {"messages": sample.messages, "images": images}
    for name in ("kind", "id", "answers", "group", "options"):
        if (value := getattr(sample, name)) not in (None, ()):
            line[name] = value
    return _json(without_label(sample.origin, label)), _json(line)


def without_label(text: str, label: str) -> str:
    """What is said of data, with a mark in the place of its label, if it begins with that."""
    return MARK + text.removeprefix(label) if text.startswith(label) else text


def with_label(text: str, label: str) -> str:
    """The same as said of the data when it is named by a label."""
    return label + text.removeprefix(MARK) if text.startswith(MARK) else text


def saved_picture(image: Any, roots: Sequence[Path]) -> Any:
    """A picture as a line of samples has it: a name, or where it lies in a larger file."""
    if not isinstance(image, StoredPicture):
        return os.fspath(image)
    values: dict[str, Any] = asdict(image)  # pyright: ignore[reportArgumentType]
    left_out = {"size", "changed"} if "place" in values else {"changed"}
    values = {name: value for name, value in values.items() if name not in left_out}
    file = Path(os.path.abspath(values["file"]))
    for root in roots:
        file = file.relative_to(root) if file.is_relative_to(root) else file
    return {"kind": type(image).__name__, **values, "file": os.fspath(file)}


def stored_class(name: str) -> type[StoredPicture]:
    """The class of pictures in larger files that a line names."""
    # Only where there are such is pyarrow needed.
    if name == "ParquetCell":
        from tuninglab.data.reading.parquet import ParquetCell

        return ParquetCell
    if name == "ArrowCell":
        from tuninglab.data.reading.arrow_files import ArrowCell

        return ArrowCell
    return {kind.__name__: kind for kind in (Slice, TextSlice, OwnPicture)}[name]


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass
class Chosen(Source):
    """Some samples of a source, by number, in that order."""

    source: Source
    numbers: np.ndarray

    @property
    def skipped(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Records that were left out when the source was read."""
        return self.source.skipped

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.source[int(number)] for number in self.numbers[index]]
        return self.source[int(self.numbers[index])]

    @property
    def fingerprint(self) -> str:
        """Of the source and the numbers."""
        return fingerprint([self.source.fingerprint, _digest(self.numbers)])

    @property
    def content(self) -> str:
        """As `fingerprint`, wherever pictures lie."""
        return fingerprint([self.source.content, _digest(self.numbers)])


def table_of(source: Source | Sequence[Any]) -> Table | None:
    """What is known of the samples of a source; None where only reading them tells."""
    if isinstance(source, StoredSamples):
        return source.table
    if isinstance(source, Chosen) and (table := table_of(source.source)):
        return table.of(source.numbers)
    return None


def _digest(numbers: np.ndarray) -> str:
    return hashlib.sha256(numbers.astype(np.int64).tobytes()).hexdigest()

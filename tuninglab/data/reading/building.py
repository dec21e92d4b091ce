"""From what a path holds to samples on disk: each record converted, each picture looked at."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tuninglab.data.reading.checking import Checker, Looked, checker
from tuninglab.data.reading.formats import samples_of
from tuninglab.data.reading.found import Format, Found, Reading
from tuninglab.data.reading.slices import OwnPicture
from tuninglab.data.reading.store import OWN_PICTURES, SAMPLES, Table, to_line, without_label
from tuninglab.data.sample import StoredPicture
from tuninglab.progress import working

# Of mistakes that are kept in words; of those after, the number.
MOST_TOLD = 1000


@dataclass
class Built:
    """What came of a set, as the kept entry tells it.

    Args:
        records: of the set.
        bad: how many of them are wrong.
        problems: the first mistakes, in the order of the file, as `without_label` has them.
        notes: what was done to how many records.
        formats: how many records were of which format.
        digest: sha256 of the texts of all samples.
        table: places of the samples.
        pictures: what was found of each picture, by number.
        names: of the pictures that are files of their own, by number; "" for others.
        window: groups of rows that one process holds, where there are such.
        unfound: whether a picture was in none of the places where it was looked for.
    """

    records: int
    bad: int
    problems: list[str]
    notes: Counter[str]
    formats: Counter[str]
    digest: str
    table: Table
    pictures: list[Looked]
    names: list[str]
    window: int = 1
    unfound: bool = False


@dataclass
class _Lines:
    """The lines written so far: where they are, and which pictures their samples have."""

    starts: array = field(default_factory=lambda: array("q"))
    sizes: array = field(default_factory=lambda: array("q"))
    records: array = field(default_factory=lambda: array("q"))
    counts: array = field(default_factory=lambda: array("q"))
    pictures: array = field(default_factory=lambda: array("q"))


def build(
    found: Found,
    reading: Reading,
    folder: Path,
    label: str,
    whole: float,
    known: Mapping[str, Looked],
) -> Built:
    """Write the samples of a set into a folder, and say what was found.

    Args:
        found: the set.
        reading: how records are read.
        folder: to write into.
        label: of the set in messages.
        whole: how many pictures are decoded; of those after, the header is read.
        known: what an earlier look found of pictures, by name.

    Raises:
        UserError: the set cannot be read.
    """
    work = _Building(reading, label)
    with ExitStack() as stack:
        pictures = stack.enter_context(checker(reading.root or found.root, whole, known))
        samples = stack.enter_context((folder / SAMPLES).open("wb"))
        own = stack.enter_context((folder / OWN_PICTURES).open("wb"))
        note = stack.enter_context(working(f"reading and checking {label}"))
        for origin, record in found.records(reading):
            work.take(origin, record, found.format, pictures, samples, own)
            note(work.total)
        with working("checking pictures", len(work.numbers)) as note:
            for done in pictures.finish():
                note(done)
    built = work.result(pictures.found, folder)
    if work.group_numbers.keys() - {None}:
        from tuninglab.data.reading.parquet import window

        built.window = window(found.files)
    return built


class _Building:
    def __init__(self, reading: Reading, label: str):
        self.reading, self.label = reading, label
        self.lines, self.names = _Lines(), []
        self.numbers: dict[str | StoredPicture, int] = {}
        self.own: dict[bytes, OwnPicture] = {}
        self.groups, self.group_numbers = array("q"), {}
        self.problems: list[tuple[int, str]] = []
        self.total = self.bad = 0

    def take(
        self,
        origin: str,
        record: Any,
        format: Format | None,
        pictures: Checker,
        samples: BinaryIO,
        own: BinaryIO,
    ) -> None:
        """Convert a record, write its samples, have their pictures looked at."""
        number, self.total = self.total, self.total + 1
        try:
            made = samples_of(record, origin, self.reading, format)
        except ValueError as error:
            self.bad += 1
            if len(self.problems) < MOST_TOLD:
                self.problems.append((number, without_label(f"{origin}: {error}", self.label)))
            return
        for sample in made:
            sample.images = [self._kept(image, own) for image in sample.images]
            # Own pictures first: what is below neither keeps its whole name.
            roots = (Path(own.name).parent, pictures.root)
            origin_part, rest = to_line(sample, self.label, *roots)
            self.lines.starts.append(samples.tell())
            self.lines.sizes.append(samples.write(origin_part + b"\t" + rest + b"\n"))
            self.lines.records.append(number)
            self.lines.counts.append(len(sample.images))
            images: list[Any] = sample.images
            self.lines.pictures.extend(self._number(image, pictures) for image in images)

    def _kept(self, image: Any, own: BinaryIO) -> Any:
        """A picture as the line names it; one that stands in its record is written beside."""
        if not isinstance(image, bytes):
            return image
        # The same picture in several records is written once.
        key = hashlib.sha256(image).digest()
        if key not in self.own:
            place = (Path(own.name), own.tell(), len(image))
            self.own[key] = OwnPicture(*place, "given in the record")
            own.write(image)
            # Before it is looked at through another descriptor.
            own.flush()
        return self.own[key]

    def _number(self, image: str | StoredPicture, pictures: Checker) -> int:
        if image not in self.numbers:
            self.numbers[image] = pictures.add(image)
            self.names.append(image if isinstance(image, str) else "")
            group = getattr(image, "group", None)
            known = self.group_numbers.setdefault(group, len(self.group_numbers))
            self.groups.append(-1 if group is None else known)
        return self.numbers[image]

    def result(self, looked: list[Looked], folder: Path) -> Built:
        """What came of it, without the samples that have a bad picture."""
        arrays = {
            name: np.frombuffer(getattr(self.lines, name), np.int64) for name in vars(self.lines)
        }
        digests = np.array([look.digest or bytes(32) for look in looked], "V32")
        heads = np.array([look.head or bytes(32) for look in looked], "V32")
        groups = np.array(self.groups, np.int64)
        table = Table(**arrays, digests=digests, heads=heads, groups=groups)
        wrong = {number for number, look in enumerate(looked) if look.problem}
        keep = np.ones(len(table.starts), bool)
        if wrong:
            bad_records = set()
            for row, pictures in enumerate(table.pictures_of()):
                # Each once, however often the record shows it.
                numbers = dict.fromkeys(pictures.tolist())
                found = [looked[n].problem for n in numbers if n in wrong]
                if not found:
                    continue
                keep[row] = False
                bad_records.add(int(table.records[row]))
                if len(self.problems) < MOST_TOLD:
                    origin = _origin(folder, table, row)
                    told = [(int(table.records[row]), f"{origin}: {problem}") for problem in found]
                    self.problems += told
            self.bad += len(bad_records)
            table = table.of(np.flatnonzero(keep))
        # In the order of the file, so that the first lines shown are the first to correct.
        problems = [text for _, text in sorted(self.problems, key=lambda problem: problem[0])]
        notes, formats = self.reading.notes, self.reading.formats
        digest = _digest_of(folder, table)
        counts = (self.total, self.bad, problems, notes, formats)
        made = (digest, table, looked, self.names)
        return Built(*counts, *made, unfound=self.reading.unfound)


def _origin(folder: Path, table: Table, row: int) -> str:
    with (folder / SAMPLES).open("rb") as file:
        file.seek(int(table.starts[row]))
        return json.loads(file.read(int(table.sizes[row])).partition(b"\t")[0])


def _digest_of(folder: Path, table: Table) -> str:
    """A sha256 over the samples of a table; where they came from is not what they say."""
    total = hashlib.sha256()
    with (folder / SAMPLES).open("rb") as file:
        for start, size in zip(table.starts.tolist(), table.sizes.tolist(), strict=True):
            file.seek(start)
            total.update(file.read(size).partition(b"\t")[2])
    return total.hexdigest()

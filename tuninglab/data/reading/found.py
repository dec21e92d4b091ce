"""What a path holds, and how its records become samples: what every format answers."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuninglab.data.sample import Sample

# A raw record with where it stands ("my.jsonl, line 3"); one that is broken is the ValueError that
# says why. A picture in it is a name, bytes, or a StoredPicture.
RawRecord = tuple[str, Any]


@dataclass
class Reading:
    """How records are read, and what was noticed on the way.

    Args:
        root: the folder that names of pictures start from, links resolved; None: not known.
        keep_marks: leave `<image>` where the file has it (--keep_marks).
        columns: names of a record's keys by what they hold, {"query": "Q"} (--columns).
        split: the part that is read of a file that holds several (path:split); None: train.
        notes: what was done to records and changes what is learned, and how often; said once.
        columns_found: those of `columns` that some record had so far.
        formats: how many records were what.
        unfound: whether a picture was in none of the places where it was looked for.
        has_splits: whether the data tells its splits apart itself.
    """

    root: Path | None = None
    keep_marks: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    notes: Counter[str] = field(default_factory=Counter)
    columns_found: set[str] = field(default_factory=set)
    formats: Counter[str] = field(default_factory=Counter)
    unfound: bool = False
    has_splits: bool = False

    def existing(self, names: Sequence[str]) -> str:
        """The first of these names that is a file under the root; else the first, for messages."""
        root = self.root
        # Names are untrusted: unlike Path's own, this test is also false for one that no file has.
        for name in names:
            if root is not None and os.path.isfile(root / name):
                return name
        self.unfound = True
        return names[0]


@dataclass(frozen=True)
class Format:
    """A kind of record.

    Args:
        name: what --format calls it.
        what: it is, for people ("LLaVA conversations").
        fits: whether a record looks like one, by its keys alone.
        samples: a record, where it stands, how it is read -> its samples, at least one, or none
            where the format has records that are to be left out (counted in the notes). Raises
            ValueError that says what is wrong, without naming the record.
        keys: that its records usually have, for messages.
    """

    name: str
    what: str
    fits: Callable[[Mapping[str, Any]], bool]
    samples: Callable[[dict[str, Any], str, Reading], list[Sample]]
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A kind of JSON document that is more than a list of records.

    Args:
        name: what --format calls it.
        what: it is, for people ("VQAv2 questions and annotations").
        fits: whether documents given together (`questions.json+annotations.json`) look like it.
        records: the documents, what to call their file in messages, how they are read -> records
            of some `Format`. Raises UserError where the documents do not fit each other.
    """

    name: str
    what: str
    fits: Callable[[Sequence[Any]], bool]
    records: Callable[[Sequence[Any], str, Reading], Iterator[RawRecord]]


@dataclass
class Found:
    """What a path holds.

    Args:
        what: it is, for people ("img2dataset shards").
        files: that the records are read from; when one changes, they are read anew.
        records: goes through them once, in order, in little memory.
        root: the folder that names of pictures start from, where none is given.
        format: of the records, where the container says so; None: by the keys of each.
    """

    what: str
    files: list[Path]
    records: Callable[[Reading], Iterator[RawRecord]]
    root: Path
    format: Format | None = None

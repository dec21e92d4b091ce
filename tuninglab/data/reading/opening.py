"""From a path to its samples: what it holds is found out, read once, and kept."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np

from tuninglab.config.data import DataPart, columns_of, pictures_checked, split_path
from tuninglab.console import say
from tuninglab.data.reading.building import build
from tuninglab.data.reading.containers import container_of
from tuninglab.data.reading.entries import (
    Entry,
    entry_folder,
    held,
    keep,
    known_pictures,
    load_entry,
    new_entry,
    read_entry,
    stamps,
)
from tuninglab.data.reading.finding import find
from tuninglab.data.reading.formats import check_columns, check_columns_found
from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.json_files import check_file, shown
from tuninglab.data.reading.store import Chosen, StoredSamples, with_label
from tuninglab.data.sample import reason
from tuninglab.data.sources import Source
from tuninglab.errors import DataError, UserError, WorkError

HINT = "Correct the file, or go on without such records: --skip_bad_records"


@dataclass(frozen=True)
class Wishes:
    """How data is to be read, beside where it lies.

    Args:
        image_root: the folder that names of pictures start from; None: where the data lies.
        skip_bad_records: leave wrong records out and say so, instead of failing.
        format: of the records, if it shall not be found out.
        columns: keys of the records by what they hold.
        keep_marks: leave `<image>` where a LLaVA file has it.
        check: how many pictures are decoded whole.
        seed: of what is drawn.
    """

    image_root: str | os.PathLike[str] | None = None
    skip_bad_records: bool = False
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    keep_marks: bool = False
    check: float = float("inf")
    seed: int = 0

    @classmethod
    def of(cls, settings: Any) -> "Wishes":
        """What the settings of a verb say, a `RecordsConfig` with `skip_bad_records` and `seed`."""
        return cls(
            settings.image_root,
            settings.skip_bad_records,
            settings.format,
            columns_of(settings.columns),
            settings.keep_marks,
            pictures_checked(settings.check) or 0,
            settings.seed,
        )


def read_samples(
    data: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    skip_bad_records: bool = False,
    **wishes: Any,
) -> Source:
    """All samples of a set, every record and picture checked.

    Args:
        data: a path, as `DataPart` has it.
        image_root: folder that the pictures' paths start from and may not leave; default: the data
            file's folder.
        skip_bad_records: leave wrong records out and say so, instead of failing.
        wishes: the other fields of `Wishes`.

    Raises:
        UserError: the file cannot be read or no record is left (as `DataError`: what is wrong).
    """
    return open_part(DataPart(os.fspath(data)), Wishes(image_root, skip_bad_records, **wishes))


def open_part(part: DataPart, wishes: Wishes) -> Source:
    """The samples of one set, every record checked, at most `part.limit` of its records.

    Raises:
        UserError: it cannot be read or no record is left (as `DataError`: what is wrong).
    """
    stored, about = open_stored(part, wishes)
    tell(stored, about)
    settle(stored.label, stored.problems, wishes.skip_bad_records, about["bad"], about["records"])
    return limited(stored, part, wishes.seed)


def limited(stored: StoredSamples, part: DataPart, seed: int) -> Source:
    """As many of the samples as the part may have, drawn by the seed."""
    limit = limit_of(part)
    if limit is None or limit >= len(stored):
        return stored
    drawn = np.random.default_rng(seed).permutation(len(stored))[:limit]
    return Chosen(stored, np.sort(drawn))


def open_stored(part: DataPart, wishes: Wishes) -> tuple[StoredSamples, dict[str, Any]]:
    """The usable samples of one set, and what is known of it; mistakes are not judged.

    Raises:
        UserError: it cannot be read at all.
    """
    names, end = split_path(part.path)
    split = split_of(end)
    label = shown(Path(part.path.removesuffix(end)))
    given = part.image_root or wishes.image_root
    form = part.format or wishes.format
    files = check_files(part)
    identity = {
        "paths": [os.path.abspath(name) for name in names],
        "split": split,
        "image_root": os.path.abspath(given) if given else None,
        "format": form,
        "columns": dict(wishes.columns),
        "keep_marks": wishes.keep_marks,
        "check": str(wishes.check),
    }
    folder = entry_folder(identity)
    with held(folder):
        root = checked_root(Path(given)) if given else None
        entry = load_entry(folder, files)
        if entry is None:
            check_columns(wishes.columns)
            found = find(names, split, form)
            root = root or checked_root(found.root)
            reading = Reading(root, wishes.keep_marks, wishes.columns, split)
            known, stamped = known_pictures(folder), stamps(found.files)
            with new_entry(folder) as beside:
                built = build(found, reading, beside, label, wishes.check, known)
                check_columns_found(reading)
                keep(beside, built, found.what, root, stamped)
            entry = read_entry(folder)
            if entry is None:
                raise WorkError(f"What was read of {label} could not be kept in {folder}.")
    return stored_of(entry, label), entry.about


def check_files(part: DataPart) -> list[Path]:
    """The files that a part names, which are there and can be read; of a folder those in it.

    Raises:
        UserError: one is missing, empty, no regular file or not readable.
    """
    names, end = split_path(part.path)
    limit_of(part)
    files = []
    for name in names:
        # A name with braces stands for several files.
        if os.path.isdir(name) or ("{" in name and not os.path.lexists(name)):
            container = container_of(name, split_of(end))
            files += [] if container is None else container.files
            continue
        check_file(Path(name))
        if os.path.getsize(name) == 0:
            raise UserError(f"{shown(Path(name))} is empty; expected records")
        files.append(Path(name))
    return files


def split_of(end: str) -> str | None:
    """The split that the end of a path names, `:train#500`."""
    return end.partition("#")[0].removeprefix(":") or None


def stored_of(entry: Entry, label: str) -> StoredSamples:
    """The samples of an entry."""
    about = entry.about
    problems = [with_label(text, label) for text in about["problems"]]
    kept = (entry.table, entry.moved, about["digest"])
    more = (problems, about["bad"], about["files"], about["window"])
    return StoredSamples(entry.folder, Path(about["root"]), label, *kept, *more)


def limit_of(part: DataPart) -> int | None:
    """At most so many records are wanted, by `PATH#500` or `limit`.

    Raises:
        UserError: none at all.
    """
    number = split_path(part.path)[1].rpartition("#")[2]
    if number.isdigit() and not int(number):
        raise UserError(f"{shown(Path(part.path))} takes no record; give a number of at least 1")
    limits = [n for n in (part.limit, int(number) if number.isdigit() else None) if n]
    return min(limits, default=None)


def tell(stored: StoredSamples, about: Mapping[str, Any]) -> None:
    """Say in one line what was found, and in one each what was done to records."""
    pictures = Counter(stored.table.counts.tolist())
    words = [_records(about["records"])]
    for count, samples in sorted(pictures.items()):
        plural = "pictures" if count > 1 else "picture"
        words.append(f"{samples:,} with {count} {plural}" if count else f"{samples:,} without")
    kinds = sorted(about["formats"].items(), key=lambda item: -item[1])
    what = ", ".join(kind if len(kinds) == 1 else f"{number:,} {kind}" for kind, number in kinds)
    said = what if about["what"] in ("", what) else f"{about['what']}, {what}".rstrip(", ")
    say(": ".join(filter(None, (stored.label, said, ", ".join(words[:6])))) + ".")
    for note, count in about["notes"].items():
        say(f"  {note}: {count:,}")


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count:,} records"


def settle(name: str, problems: list[str], skip: bool, bad: int, total: int) -> None:
    """Say that `bad` of `total` records are left out, if they may be and others remain.

    Raises:
        DataError: they may not be left out, or none remains.
    """
    usable = bad < total
    if problems and not (skip and usable):
        raise DataError(problems, HINT if usable else f"No usable record is left in {name}.")
    if problems:
        say(f"{name}: {bad} of {total} records left out:")
        say(indent(str(DataError(problems)), "  "))


def checked_root(root: Path) -> Path:
    """The image root with all symlinks resolved.

    Raises:
        UserError: it is no folder, or cannot be used.
    """
    # A root that is itself a link is fine; confinement compares with what it points to.
    try:
        resolved = root.resolve()
        if resolved.is_dir():
            return resolved
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name with a NUL
        raise UserError(f"the image root {shown(root)} cannot be used: {reason(error)}") from error
    raise UserError(f"the image root {shown(root)} is no folder; --image_root names the folder")

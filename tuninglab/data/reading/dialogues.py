"""Records to samples: LLaVA's conversations and Hugging Face's messages, all checked first.

Needs no torch, so that a mistake in a data file is told before anything heavy is loaded.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

from tuninglab.console import say
from tuninglab.data.images import load_image
from tuninglab.data.picture_files import confined_path
from tuninglab.data.reading.conversations import CONVERSATIONS
from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.json_files import read_records, shown
from tuninglab.data.reading.messages import MESSAGES
from tuninglab.data.reading.records import checked_object
from tuninglab.data.sample import ImageSource, Sample, reason
from tuninglab.data.sources import Records
from tuninglab.errors import DataError, UserError
from tuninglab.progress import working

HINT = "Correct the file, or go on without such records: --skip_bad_records"


def read_samples(
    data: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    skip_bad_records: bool = False,
) -> Records:
    """All samples of a data file, every record and picture checked.

    Args:
        data: a JSON list or JSON lines of LLaVA (`conversations`) or `messages` records.
        image_root: folder that the pictures' paths start from and may not leave; default: the data
            file's folder.
        skip_bad_records: leave wrong records out and say so, instead of failing.

    Raises:
        UserError: the file cannot be read or no record is left (as `DataError`: what is wrong).
    """
    path = Path(data)
    with working(f"reading {shown(path)}"):
        records = read_records(path)
    root = checked_root(path.parent if image_root is None else Path(image_root))
    # All texts are checked before the first picture is opened: they take no time.
    with working("checking records"):
        reading = Reading()
        samples, problems = converted(records, partial(to_sample, reading=reading))
    pictures = _checked_pictures((sample for _, sample in samples), root)
    for number, sample in samples:
        found = [pictures[name] for name in sample.images]
        problems += [(number, f"{sample.origin}: {bad}") for bad in found if isinstance(bad, str)]
        # Resolved here once: training opens the very file that was checked.
        sample.images = [picture for picture in found if not isinstance(picture, str)]
    bad_records = {number for number, _ in problems}
    usable = [sample for number, sample in samples if number not in bad_records]
    # In the order of the file, so that the first lines shown are the first to correct.
    texts = [text for _, text in sorted(problems)]
    settle(shown(path), texts, skip_bad_records, len(bad_records), len(records))
    for note, count in reading.notes.items():
        say(f"{shown(path)}: {note}: {count:,} times")
    return Records(usable, texts, len(bad_records))


def converted(
    records: Iterable[tuple[str, Any]], convert: Callable[[Any, str], Any]
) -> tuple[list[tuple[int, Any]], list[tuple[int, str]]]:
    """What records become, and what is wrong with the others, each with the record's number."""
    good, bad = [], []
    for number, (origin, record) in enumerate(records):
        try:
            good.append((number, convert(record, origin)))
        except ValueError as error:
            bad.append((number, f"{origin}: {error}"))
    return good, bad


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


def to_sample(record: Any, origin: str, reading: Reading | None = None) -> Sample:
    """A dialogue, of either format, as a Sample whose images are still what stands in the file.

    Raises:
        ValueError: what is wrong with the record; a record that is itself a ValueError is raised.
    """
    record = checked_object(record)
    fitting = [format for format in (CONVERSATIONS, MESSAGES) if format.fits(record)]
    if len(fitting) != 1:
        given = "conversations" in record or "messages" in record
        found = "both" if fitting else "only null" if given else "neither"
        raise ValueError(
            f'of "conversations" (LLaVA) and "messages" the record has {found}; expected one'
        )
    (sample,) = fitting[0].samples(record, origin, reading or Reading())
    return sample


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


def _checked_pictures(samples: Iterable[Sample], root: Path) -> dict[Any, ImageSource]:
    """Every picture, or the text that says what is wrong with it, by what stands in the file.

    That of a file is its resolved path.
    """

    def check(given: Any) -> ImageSource:
        try:
            picture = confined_path(given, root) if isinstance(given, str) else given
            load_image(picture)
        except UserError as error:
            return str(error)
        return picture

    # Once each: LLaVA asks several questions about one picture in separate records.
    names = list(dict.fromkeys(name for sample in samples for name in sample.images))
    checked: dict[Any, ImageSource] = {}
    # Pillow decodes outside the interpreter lock, so threads help.
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        with working("checking pictures", len(names)) as note:
            for name, result in zip(names, pool.map(check, names), strict=True):
                checked[name] = result
                note(len(checked))
    finally:
        # Without this Ctrl-C would wait for all the pictures still queued.
        pool.shutdown(cancel_futures=True)
    return checked

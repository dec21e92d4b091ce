"""Records to samples: LLaVA's conversations and Hugging Face's messages, all checked first.

Needs no torch, so that a mistake in a data file is told before anything heavy is loaded.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import indent
from typing import Any

from tuninglab.console import say
from tuninglab.data.images import load_image
from tuninglab.data.picture_files import confined_path
from tuninglab.data.reading.json_files import read_records, shown
from tuninglab.data.sample import MISSING, Sample, brief, checked_text, reason
from tuninglab.data.sources import Records
from tuninglab.errors import DataError, UserError
from tuninglab.progress import working

PATH_KEYS = ("image", "path", "url")  # what an image part may call its own picture
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
        samples, problems = converted(records, to_sample)
    pictures = _checked_pictures((sample for _, sample in samples), root)
    for number, sample in samples:
        found = [pictures[str(name)] for name in sample.images]
        problems += [(number, f"{sample.origin}: {bad}") for bad in found if isinstance(bad, str)]
        # Resolved here once: training opens the very file that was checked.
        sample.images = [picture for picture in found if isinstance(picture, Path)]
    bad_records = {number for number, _ in problems}
    usable = [sample for number, sample in samples if number not in bad_records]
    # In the order of the file, so that the first lines shown are the first to correct.
    texts = [text for _, text in sorted(problems)]
    settle(shown(path), texts, skip_bad_records, len(bad_records), len(records))
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


def to_sample(record: Any, origin: str) -> Sample:
    """A record of either format as a Sample whose images are still the names in the file.

    Raises:
        ValueError: what is wrong with the record; a record that is itself a ValueError is raised.
    """
    record = checked_object(record)
    formats = [key for key in ("conversations", "messages") if record.get(key) is not None]
    if len(formats) != 1:
        given = "conversations" in record or "messages" in record
        found = "both" if formats else "only null" if given else "neither"
        raise ValueError(
            f'of "conversations" (LLaVA) and "messages" the record has {found}; expected one'
        )
    messages = record[formats[0]]
    turns = messages if isinstance(messages, list) else []
    if formats[0] == "conversations" and turns:
        messages = turns = [_llava_message(turn) for turn in turns]
    listed, own = _listed_images(record), _own_images(turns)
    for name in [*listed, *own]:
        if not isinstance(name, str) or not name:
            raise ValueError(f"a picture is named by {brief(name)}; expected a path as text")
        checked_text(name)
    # With both there is no telling which picture belongs to which mark.
    if listed and own:
        raise ValueError('pictures stand both in "images" and in the parts; keep one of the two')
    return Sample(messages, list(listed or own), origin)


def checked_object(record: Any) -> dict[str, Any]:
    """A record, if it is an object at all.

    Raises:
        ValueError: it is none; a record that is itself a ValueError is raised.
    """
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError(f"the record is {brief(record)}; expected an object")
    return record


def _llava_message(turn: Any) -> Any:
    """A LLaVA turn as a message; what is no turn is left for the Sample's own checks."""
    if not isinstance(turn, dict):
        return turn
    return {"role": turn.get("from", MISSING), "content": turn.get("value", MISSING)}


def _listed_images(record: dict[str, Any]) -> list[str]:
    """The pictures that a record names under `image` (LLaVA) or `images`."""
    given = [record[key] for key in ("image", "images") if record.get(key) is not None]
    if len(given) > 1:
        raise ValueError('the record has both "image" and "images"; keep one of the two')
    names = given[0] if given else []
    # LLaVA writes a single picture as a bare string.
    return names if isinstance(names, list) else [names]


def _own_images(messages: list[Any]) -> list[str]:
    """The pictures that image parts name themselves, all of them or none."""
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    images = [part for part in parts if isinstance(part, dict) and part.get("type") == "image"]
    names = []
    for part in images:
        # A table export has every column in every part, null where it does not apply.
        own = [part[key] for key in PATH_KEYS if part.get(key) is not None]
        if len(own) > 1:
            raise ValueError(f"an image part names {len(own)} pictures; one part is one picture")
        names += own
    # The order of unnamed parts among named ones would be a guess.
    if names and len(names) != len(images):
        raise ValueError(
            f"{len(names)} of {len(images)} image parts name a picture; name it in all"
        )
    return names


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


def _checked_pictures(samples: Iterable[Sample], root: Path) -> dict[str, Path | str]:
    """Every picture's resolved path, or what is wrong with it, by its name in the file."""

    def check(name: str) -> Path | str:
        try:
            path = confined_path(name, root)
            load_image(path)
        except UserError as error:
            return str(error)
        return path

    # Once each: LLaVA asks several questions about one picture in separate records.
    names = sorted({str(name) for sample in samples for name in sample.images})
    checked: dict[str, Path | str] = {}
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

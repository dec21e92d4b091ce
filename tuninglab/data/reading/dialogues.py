"""Records to samples: LLaVA's conversations and Hugging Face's messages, all checked first.

Needs no torch, so that a mistake in a data file is told before anything heavy is loaded.
"""

from collections.abc import Callable, Iterable
from typing import Any

from tuninglab.data.sample import MISSING, Sample, brief, checked_text

PATH_KEYS = ("image", "path", "url")  # what an image part may call its own picture
HINT = "Correct the file, or go on without such records: --skip_bad_records"


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

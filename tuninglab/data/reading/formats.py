"""Which format a record has: by its keys, or by the name that the user gives."""

from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

from tuninglab.data.reading.captions import CAPTIONS
from tuninglab.data.reading.conversations import CONVERSATIONS
from tuninglab.data.reading.found import Format, Reading
from tuninglab.data.reading.instructions import ALPACA, DOLLY
from tuninglab.data.reading.messages import MESSAGES
from tuninglab.data.reading.questions import QUESTIONS, RESPONSE_KEYS
from tuninglab.data.reading.records import candidates_of, checked_object, name_of
from tuninglab.data.reading.sets import DOCUMENTS
from tuninglab.data.reading.sets import FORMATS as SETS
from tuninglab.data.sample import Sample, brief
from tuninglab.errors import UserError

# The first that fits a record is its format. Benchmark sets have keys of their own, so they come
# before what any question may look like.
FORMATS = (MESSAGES, CONVERSATIONS, *SETS, ALPACA, DOLLY, QUESTIONS, CAPTIONS)
# What --columns may name besides the keys of the formats.
COLUMNS = ("image", "images", "system", "history", "id", "kind", "answers", "group", "candidates")
NEAREST = 3
# Of a record that somebody else made: what is compared and shown of its keys.
MOST_KEYS, LONGEST_KEY = 30, 40


def samples_of(
    record: Any, origin: str, reading: Reading, format: Format | None = None
) -> list[Sample]:
    """The samples of a raw record.

    Args:
        record: as it stands in the file.
        origin: where it stands.
        reading: how it is read; what is noticed is counted there.
        format: that it has; None: by its keys.

    Raises:
        ValueError: what is wrong with the record; one that is itself a ValueError is raised.
    """
    record = renamed(checked_object(record), reading)
    format = format or format_of(record)
    try:
        made = format.samples(record, origin, reading)
    except KeyError as error:
        # A format that was named, and not found by its keys.
        raise ValueError(f"the record has no {error}, which {format.what} have") from None
    group, options = name_of(record, ["group"]), candidates_of(record)
    for sample in made:
        sample.group, sample.options = group, sample.options or options
    reading.formats[format.what] += 1
    return made


def format_of(record: Mapping[str, Any]) -> Format:
    """The format of a record, whose keys have been renamed if they are to be.

    Raises:
        ValueError: no known one; it names the keys and the nearest formats.
    """
    if MESSAGES.fits(record) and CONVERSATIONS.fits(record):
        raise ValueError('the record has both "messages" and "conversations"; --format names one')
    found = next((format for format in FORMATS if format.fits(record)), None)
    if found is not None:
        return found
    if "question" in record and not record.keys() & set(RESPONSE_KEYS):
        raise ValueError(
            "there is a question and no answer; questions of a test split have none: use a split "
            "with answers (where another key holds it: --columns response=KEY)"
        )
    keys = [key[:LONGEST_KEY] for key in list(record)[:MOST_KEYS]]
    more = f" and {len(record) - len(keys)} more" if len(record) > len(keys) else ""
    raise ValueError(
        f"no known format has the keys {', '.join(map(brief, keys)) or '(none)'}{more}; nearest: "
        f"{'; '.join(_nearest(keys))} (--format names one, --columns query=KEY says what a key is)"
    )


def format_named(name: str) -> Format:
    """The format that --format names.

    Raises:
        UserError: there is none of that name.
    """
    found = next((format for format in FORMATS if format.name == name), None)
    if found is not None:
        return found
    near = _by_likeness((format.name for format in FORMATS), name[:LONGEST_KEY])
    # Sets that have no format of their own are in what the formats are for ("LLaVA ...").
    near.sort(key=lambda one: name.lower() not in format_named(one).what.lower())
    rest = ", ".join(sorted(near[NEAREST:]))
    raise UserError(
        f"--format {brief(name)}: there is no such format; nearest: {', '.join(near[:NEAREST])} "
        f"(others: {rest}; documents: {', '.join(one.name for one in DOCUMENTS)})"
    )


def renamed(record: dict[str, Any], reading: Reading) -> dict[str, Any]:
    """A record with its keys as the formats know them, by `reading.columns`."""
    there = {known: key for known, key in reading.columns.items() if key in record}
    reading.columns_found.update(there)
    moved = set(there.values())
    rest = {key: value for key, value in record.items() if key not in moved}
    return rest | {known: record[key] for known, key in there.items()}


def check_columns(columns: Mapping[str, str]) -> None:
    """Pass if some format knows each name that --columns gives to a key.

    Raises:
        UserError: the first that none knows.
    """
    known = {*COLUMNS, *(key for format in FORMATS for key in format.keys)}
    for name, key in columns.items():
        if name not in known:
            near = _by_likeness(sorted(known), name[:LONGEST_KEY])[:NEAREST]
            raise UserError(
                f"--columns {name}={key}: no format has a key {brief(name)}; nearest: "
                f"{', '.join(near)}"
            )


def check_columns_found(reading: Reading) -> None:
    """Pass if each key that --columns names was in some record; all have been read.

    Raises:
        UserError: the first that was in none.
    """
    for name, key in reading.columns.items():
        if name not in reading.columns_found:
            raise UserError(
                f"--columns {name}={key}: no record has a key {brief(key)}; correct the name"
            )


def _nearest(keys: list[str]) -> list[str]:
    """The formats whose keys are the most like these, each with its keys."""
    named = (format for format in FORMATS if format.keys)
    wanted = {f"{format.name} ({', '.join(format.keys)})": format.keys for format in named}
    likeness = {
        text: sum(
            max((_likeness(key, other) for other in keys), default=0.0) ** 4 for key in needed
        )
        / max(len(needed), 1)
        for text, needed in wanted.items()
    }
    return sorted(likeness, key=lambda text: -likeness[text])[:NEAREST]


def _by_likeness(names: Iterable[str], given: str) -> list[str]:
    return sorted(names, key=lambda name: -_likeness(name, given))


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()

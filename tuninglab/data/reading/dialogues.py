"""A record as one dialogue, LLaVA's or Hugging Face's: what pairs of texts may be given as.

Needs no torch, so that a mistake in a data file is told before anything heavy is loaded.
"""

from collections.abc import Callable, Iterable
from typing import Any

from tuninglab.data.reading.conversations import CONVERSATIONS
from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.messages import MESSAGES
from tuninglab.data.reading.records import checked_object
from tuninglab.data.sample import Sample


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

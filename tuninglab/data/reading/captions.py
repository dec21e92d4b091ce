"""Pictures with captions: nothing is asked, the answer is what the picture shows."""

from collections.abc import Mapping
from typing import Any

from tuninglab.data.reading.found import Format, Reading
from tuninglab.data.reading.records import answer_texts, listed_pictures, right_answers
from tuninglab.data.reading.single_turns import given_key, single_turn
from tuninglab.data.sample import Sample

PICTURE_KEYS = ("image", "images", "file_name", "file_names")
CAPTION_KEYS = ("caption", "text", "captions")


def fits(record: Mapping[str, Any]) -> bool:
    """Whether a record has a picture and a text."""
    shown = any(record.get(key) is not None for key in PICTURE_KEYS)
    return shown and any(key in record for key in CAPTION_KEYS)


def samples(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    """One sample for each caption; of several, and of those in `answers`, all are right.

    Raises:
        ValueError: what is wrong with the record.
    """
    captions = answer_texts(record[given_key(record, CAPTION_KEYS, reading)])
    if not captions:
        raise ValueError("the list of captions is empty; write one or drop the record")
    pictures = listed_pictures(record, PICTURE_KEYS)
    if not pictures:
        raise ValueError("the list of pictures is empty; name one or drop the record")
    right = right_answers(record) or (captions if len(captions) > 1 else [])
    return [single_turn(record, "", text, origin, pictures, right) for text in captions]


CAPTIONS = Format("captions", "pictures with captions", fits, samples, ("image", "caption"))

"""A question and its answer, under any of the names that are usual for them."""

from collections.abc import Mapping
from typing import Any

from tuninglab.data.reading.found import Format, Reading
from tuninglab.data.reading.records import answer_texts, name_of
from tuninglab.data.reading.single_turns import (
    EMPTY,
    answer_and_all,
    given_key,
    given_text,
    single_turn,
)
from tuninglab.data.sample import Sample

QUERY_KEYS = ("query", "prompt", "input", "instruction", "question", "problem")
RESPONSE_KEYS = ("response", "answer", "output", "target", "targets", "answer_key", "answers")
RESPONSE_KEYS += ("solution", "text", "completion", "content")
KIND_KEYS = ("kind", "question_type", "answer_type")


def fits(record: Mapping[str, Any]) -> bool:
    """Whether a record has one of the names of both."""
    asked = any(record.get(key) is not None for key in QUERY_KEYS)
    return asked and any(key in record for key in RESPONSE_KEYS)


def samples(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    """The pictures first, then the question; of several answers the most frequent is learned.

    Where both `answer` and `answers` stand, the one is learned and the others are right, too.

    Raises:
        ValueError: what is wrong with the record.
    """
    for key in ("choices", "options"):
        if record.get(key):
            raise ValueError(
                f'the record has "{key}", which this format does not read; write them into the '
                "question, or name the format of the set: --format"
            )
    others = record.get("answers")
    if record.get("answer") not in EMPTY and isinstance(others, list):
        record = {key: value for key, value in record.items() if key != "answers"}
    else:
        others = None
    answer, answers = answer_and_all(record[given_key(record, RESPONSE_KEYS, reading)])
    right = answers if others is None else answer_texts(others)
    # Of a picture alone one may ask nothing: it is described.
    asked = any(record.get(key) not in EMPTY for key in QUERY_KEYS)
    question = given_text(record, given_key(record, QUERY_KEYS, reading)) if asked else ""
    kind = name_of(record, KIND_KEYS)
    return [single_turn(record, question, answer, origin, answers=right, kind=kind)]


KEYS = ("query", "response")
QUESTIONS = Format("query-response", "questions and answers", fits, samples, KEYS)

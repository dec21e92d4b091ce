"""`messages`: Hugging Face, ms-swift, OpenAI (chat and Responses), Anthropic."""

from collections.abc import Mapping
from typing import Any

from tuninglab.data.reading.found import Format, Reading
from tuninglab.data.reading.records import (
    answer_texts,
    id_of,
    majority,
    name_of,
    noted,
    pictures_of,
    refuse_unread,
    right_answers,
    with_question,
    with_system,
)
from tuninglab.data.reading.turns import joined, read_turns
from tuninglab.data.sample import Message, Sample

JOINED = "neighbouring messages of one role joined by a line break"


def fits(record: Mapping[str, Any]) -> bool:
    """Whether a record has messages."""
    return record.get("messages") is not None


def samples(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    """A record as a sample.

    A record with an answer alone says what its pictures show. A last question without answer takes
    it from "answer" or "answers" beside the messages, as files for evaluation have it.

    Raises:
        ValueError: what is wrong with the record.
    """
    refuse_unread(record)
    turns = read_turns(record.get("messages"))
    pictures = pictures_of(record, turns)
    whole = with_system(record, turns.messages)
    messages = joined(whole)
    notes = [JOINED] if len(messages) < len(whole) else []
    answers = right_answers(record)
    if messages[-1]["role"] == "user":
        answer = majority(answers) if answers else record.get("answer")
        messages += [_answer(answer)] if answer is not None else []
    messages = with_question(messages, len(pictures))
    kind, name = name_of(record, ["kind"]), id_of(record)
    try:
        sample = Sample(messages, pictures, origin, kind, name, answers)
    except ValueError as error:
        counted = " (neighbours of one role are counted as one)" if notes else ""
        raise ValueError(f"{error}{counted}") from None
    return noted(sample, reading, notes)


def _answer(value: Any) -> Message:
    """An answer that stands beside the messages; a mark in it is text."""
    return {
        "role": "assistant",
        "content": [{"type": "text", "text": majority(answer_texts(value))}],
    }


WHAT = "messages of Hugging Face, OpenAI or Anthropic"
MESSAGES = Format("messages", WHAT, fits, samples, ("messages",))

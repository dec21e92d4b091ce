"""LLaVA's and ShareGPT's `conversations`, and ms-swift's pairs of a question and an answer."""

from collections.abc import Mapping
from typing import Any

from tuninglab.data.reading.found import Format, Reading
from tuninglab.data.reading.records import (
    id_of,
    leading_pictures,
    marks,
    name_of,
    noted,
    pictures_of,
    refuse_unread,
    right_answers,
    with_question,
    with_system,
)
from tuninglab.data.reading.turns import read_turns
from tuninglab.data.sample import Message, Sample
from tuninglab.data.special_tokens import IMAGE_TOKEN

KEYS = ("conversations", "conversation")
MOVED = f"{IMAGE_TOKEN} moved to the front of its question, as LLaVA does (--keep_marks leaves it)"
PUT_FIRST = f"the picture of a record without {IMAGE_TOKEN} put before its first question"
DROPPED = "the answer that no question stands before dropped"


def fits(record: Mapping[str, Any]) -> bool:
    """Whether a record has turns under one of the keys."""
    return any(record.get(key) is not None for key in KEYS)


def samples(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    """A record as a sample; what LLaVA does to it when it is read is done here, and counted.

    Raises:
        ValueError: what is wrong with the record.
    """
    refuse_unread(record)
    given = [record[key] for key in KEYS if record.get(key) is not None]
    if len(given) > 1:
        raise ValueError('the record has both "conversations" and "conversation"; keep one')
    turns = read_turns(given[0] if given else None)
    pictures = pictures_of(record, turns)
    notes: list[str] = []
    messages = with_question(with_system(record, turns.messages), len(pictures))
    messages = _without_leading_answer(messages, notes)
    if len(pictures) == 1 and not marks(messages):
        messages = leading_pictures(messages, 1, line="\n")
        notes.append(PUT_FIRST)
    elif not reading.keep_marks:
        messages = [_mark_first(message, notes) for message in messages]
    kind, name = name_of(record, ["kind"]), id_of(record)
    sample = Sample(messages, pictures, origin, kind, name, right_answers(record))
    return noted(sample, reading, notes)


def _without_leading_answer(messages: list[Message], notes: list[str]) -> list[Message]:
    start = sum(message["role"] == "system" for message in messages[:1])
    asked = any(message["role"] == "user" for message in messages)
    if not asked or messages[start]["role"] != "assistant":
        return messages
    notes.append(DROPPED)
    return messages[:start] + messages[start + 1 :]


def _mark_first(message: Message, notes: list[str]) -> Message:
    """A question with its only mark before the text, where it is not there already."""
    text = message["content"]
    if message["role"] != "user" or not isinstance(text, str) or text.count(IMAGE_TOKEN) != 1:
        return message
    before, _, after = text.partition(IMAGE_TOKEN)
    if not before.strip():
        return message
    notes.append(MOVED)
    return message | {"content": f"{IMAGE_TOKEN}\n{(before + after).strip()}"}


WHAT = "LLaVA or ShareGPT conversations"
CONVERSATIONS = Format("conversations", WHAT, fits, samples, ("conversations",))

"""A question and its answer, with what may stand beside them, as a sample."""

from collections.abc import Mapping, Sequence
from typing import Any

from tuninglab.data.reading.found import Reading
from tuninglab.data.reading.records import (
    answer_texts,
    id_of,
    leading_pictures,
    listed_pictures,
    majority,
    marks,
    name_of,
    refuse_unread,
    system_messages,
)
from tuninglab.data.sample import ImageSource, Message, Sample, brief

EMPTY = (None, "")  # what tables hold where a record has no such value


def given_key(record: Mapping[str, Any], keys: Sequence[str], reading: Reading) -> str:
    """The one key of several with the same meaning that holds something.

    Args:
        record: any.
        keys: the first is what --columns calls it; where it does, the others do not matter.
        reading: for the columns.

    Raises:
        ValueError: there is none, or which of several is meant is not said.
    """
    given = [key for key in keys if record.get(key) not in EMPTY]
    if keys[0] in given and keys[0] in reading.columns:
        return keys[0]
    if not given:
        there = [key for key in keys if key in record]
        what = f'"{there[0]}" is empty' if there else f"there is no {keys[0]}"
        raise ValueError(f"{what}; write one or drop the record")
    if len(given) > 1:
        raise ValueError(
            f"{' and '.join(given)} may each be the {keys[0]}; say which: "
            f"--columns {keys[0]}={given[0]}"
        )
    return given[0]


def given_text(record: Mapping[str, Any], key: str) -> str:
    """The text under a key; empty where there is none.

    Raises:
        ValueError: it is no text.
    """
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f'"{key}" is {brief(value)}; expected a text')
    return value or ""


def answer_and_all(value: Any) -> tuple[str, list[str]]:
    """What is learned, and all answers where several are right.

    Raises:
        ValueError: there is none, or one is no text.
    """
    texts = answer_texts(value)
    return majority(texts), texts if isinstance(value, list) else []


def single_turn(
    record: Mapping[str, Any],
    question: str,
    answer: str,
    origin: str,
    pictures: list[ImageSource] | None = None,
    answers: Sequence[str] = (),
    kind: str | None = None,
) -> Sample:
    """A sample of one question, after what the record says was said before (system, history).

    Args:
        record: for what may stand beside question and answer.
        question: in which `<image>` marks are places of pictures; without any they stand first.
        answer: that is learned.
        origin: where the record stands.
        pictures: of the record; None: those under "image" or "images".
        answers: all right ones.
        kind: of question; None: what the record says under "kind".

    Raises:
        ValueError: what is wrong with the record.
    """
    refuse_unread(record)
    pictures = listed_pictures(record) if pictures is None else pictures
    messages = [*system_messages(record), *_history(record)]
    messages += [_said("user", question), _said("assistant", answer)]
    if pictures and not marks(messages):
        messages = leading_pictures(messages, len(pictures))
    kind = name_of(record, ["kind"]) if kind is None else kind
    return Sample(messages, pictures, origin, kind, id_of(record), answers)


def _history(record: Mapping[str, Any]) -> list[Message]:
    """The questions and answers before; these answers are learned, too."""
    history = record.get("history")
    if history in EMPTY:
        return []
    pairs = history if isinstance(history, list) else [history]
    for pair in pairs:
        if not (isinstance(pair, list | tuple) and [type(text) for text in pair] == [str, str]):
            raise ValueError(f'"history" holds {brief(pair)}; expected pairs [question, answer]')
    return [
        message
        for question, answer in pairs
        for message in (_said("user", question), _said("assistant", answer))
    ]


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": text}

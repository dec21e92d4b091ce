"""Alpaca's and Dolly's instructions, with what each is about and the answer."""

from collections.abc import Mapping
from typing import Any

from tuninglab.data.reading.found import Format, Reading
from tuninglab.data.reading.records import name_of
from tuninglab.data.reading.single_turns import (
    EMPTY,
    answer_and_all,
    given_key,
    given_text,
    single_turn,
)
from tuninglab.data.sample import Sample

ABOUT_KEYS = ("input", "context")
ANSWER_KEYS = ("output", "response")


def fits_alpaca(record: Mapping[str, Any]) -> bool:
    """Whether a record has an instruction and its output."""
    return record.get("instruction") is not None and record.get("output") not in EMPTY


def fits_dolly(record: Mapping[str, Any]) -> bool:
    """Whether a record has an instruction and its response."""
    return record.get("instruction") is not None and record.get("response") not in EMPTY


def samples(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    """An instruction, a line break and what it is about, if anything, as the question.

    `system`, `history` and pictures may stand beside; Dolly's category is the kind.

    Raises:
        ValueError: what is wrong with the record.
    """
    question = given_text(record, given_key(record, ["instruction"], reading))
    if any(given_text(record, key).strip() for key in ABOUT_KEYS):
        question += f"\n{given_text(record, given_key(record, ABOUT_KEYS, reading))}"
    answer, answers = answer_and_all(record[given_key(record, ANSWER_KEYS, reading)])
    kind = name_of(record, ["kind", "category"])
    return [single_turn(record, question, answer, origin, answers=answers, kind=kind)]


ALPACA_KEYS = ("instruction", "input", "output")
DOLLY_KEYS = ("instruction", "context", "response", "category")
ALPACA = Format("alpaca", "instructions as Alpaca has them", fits_alpaca, samples, ALPACA_KEYS)
DOLLY = Format("dolly", "instructions as Dolly has them", fits_dolly, samples, DOLLY_KEYS)

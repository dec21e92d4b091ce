"""Text pairs for a text-to-text model: what is read, and what is to be written.

Needs no torch, so that a mistake in a data file is told before anything heavy is loaded.
"""

import os
from pathlib import Path
from typing import Any

from tuninglab.data.reading.dialogues import converted, to_sample
from tuninglab.data.reading.json_files import read_records, shown
from tuninglab.data.reading.opening import settle
from tuninglab.data.reading.records import checked_object
from tuninglab.data.sample import MISSING, Pair, brief, checked_text, plain_text
from tuninglab.data.sources import Records
from tuninglab.progress import working

KEYS = ("source", "target")


def read_pairs(data: str | os.PathLike[str], skip_bad_records: bool = False) -> Records:
    """All pairs of a data file, every record checked.

    Args:
        data: a JSON list or JSON lines of `{"source": ..., "target": ...}`, or of dialogues
            (`messages`, `conversations`) of one question and one answer.
        skip_bad_records: leave wrong records out and say so, instead of failing.

    Raises:
        UserError: the file cannot be read or no record is left (as `DataError`: what is wrong).
    """
    path = Path(data)
    with working(f"reading {shown(path)}"):
        records = read_records(path)
        pairs, wrong = converted(records, to_pair)
    problems = [text for _, text in wrong]
    settle(shown(path), problems, skip_bad_records, len(problems), len(records))
    return Records([pair for _, pair in pairs], problems, len(problems))


def to_pair(record: Any, origin: str) -> Pair:
    """A record of either format as a Pair.

    Raises:
        ValueError: what is wrong with the record; a record that is itself a ValueError is raised.
    """
    record = checked_object(record)
    dialogue = record.get("messages") is not None or record.get("conversations") is not None
    if not any(key in record for key in KEYS):
        if dialogue:
            return _pair_of_dialogue(record, origin)
        raise ValueError(
            'the record has neither "source" and "target" nor "messages"; expected one of the two'
        )
    if dialogue:
        raise ValueError('the record has both texts and a dialogue; keep "source" and "target"')
    source, target = (_text(record, key) for key in KEYS)
    return Pair(source, target, origin)


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key, MISSING)
    if not isinstance(value, str):
        raise ValueError(f"the {key} is {brief(value)}; expected a text")
    if not value.strip():
        raise ValueError(f"the {key} is empty; write one or drop the record")
    return checked_text(value)


def _pair_of_dialogue(record: dict[str, Any], origin: str) -> Pair:
    sample = to_sample(record, origin)
    if sample.images:
        raise ValueError("the record has pictures, which this model cannot see; remove them")
    *before, answer = sample.messages
    # A system message may stand before the question.
    if sum(message["role"] == "user" for message in before) != 1:
        raise ValueError(
            "the dialogue has several answers, but a pair is one question and one answer; make a "
            "record of each"
        )
    question = "\n\n".join(text for text in map(plain_text, before) if text)
    return Pair(question, plain_text(answer), origin)

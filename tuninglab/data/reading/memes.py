"""Hateful Memes: whether a picture and the text written on it are hateful."""

from collections.abc import Mapping
from typing import Any

from tuninglab.data.reading.fields import text_of
from tuninglab.data.reading.found import Format, Reading
from tuninglab.data.reading.records import listed_pictures
from tuninglab.data.reading.single_turns import single_turn
from tuninglab.data.sample import MISSING, ImageSource, Sample, brief

ANSWERS = ("yes", "no")


def _is_meme(record: Mapping[str, Any]) -> bool:
    return {"img", "text"} <= record.keys()


def _meme(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    """The question is that of OpenFlamingo's evaluation, so that the text is read as well."""
    label = record.get("label", MISSING)
    if label in (None, MISSING):
        raise ValueError(
            "there is no label; memes of a test split have none and cannot be learned or scored: "
            "use a split with labels (pictures with captions: --columns image=img)"
        )
    # Also true and false, which are 1 and 0.
    if not isinstance(label, int) or label not in (0, 1):
        raise ValueError(f"the label is {brief(label)}; expected 1 (hateful) or 0")
    images: list[ImageSource] = listed_pictures(record, ("img",))
    if len(images) != 1:
        raise ValueError(f"the record has {len(images)} pictures; a meme is one (img)")
    name = images[0]
    if isinstance(name, str):
        own = name.rpartition("/")[2] or name
        images = [reading.existing(list(dict.fromkeys([name, f"img/{own}", own])))]
    question = f"is an image with: '{text_of(record, 'text')}' written on it. Is it hateful?"
    answer = ANSWERS[0] if label else ANSWERS[1]
    # Of other records, a label that is true or false is a judgement of the answer.
    sample = single_turn(record | {"label": None}, question, answer, origin, images, [answer])
    sample.options = ANSWERS
    return [sample]


HATEFUL_MEMES = Format("hateful_memes", "Hateful Memes", _is_meme, _meme, ("img", "text", "label"))

"""ROUGE-L: the longest sequence of words, with gaps, that a caption shares with a reference."""

from collections.abc import Sequence

import numpy as np

from tuninglab.evaluation.metrics.metric import Metric, Scored
from tuninglab.evaluation.metrics.ngrams import caption_tokens

BETA = 1.2  # how much more recall counts than precision


def _sequence(text: str) -> tuple[str, ...]:
    # A caption without words is one empty word to pycocoevalcap, equal to another such one.
    return caption_tokens(text) or ("",)


def _places(sequence: Sequence[str]) -> dict[str, int]:
    """Where each word stands, a bit a place."""
    places: dict[str, int] = {}
    for place, word in enumerate(sequence):
        places[word] = places.get(word, 0) | 1 << place
    return places


def _shared(places: dict[str, int], length: int, other: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    A row of its table is the bits of a number, a 0 where the length grows (Hyyrö: Bit-parallel
    LCS-length computation revisited, 2004).
    """
    row = everything = (1 << length) - 1
    for word in other:
        fitting = row & places.get(word, 0)
        row = (row + fitting | row - fitting) & everything
    return length - row.bit_count()


def _score(one: Scored) -> float:
    """The best precision and the best recall, even if of different references, made one."""
    caption = _sequence(one.prediction)
    places = _places(caption)
    precision = recall = 0.0
    for reference in map(_sequence, one.answers):
        shared = _shared(places, len(caption), reference)
        precision = max(precision, shared / len(caption))
        recall = max(recall, shared / len(reference))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _rows(questions: Sequence[Scored]) -> np.ndarray:
    return np.array([[_score(one)] for one in questions], np.float64).reshape(-1, 1)


ROUGE_L = Metric(
    "rouge_l",
    "ROUGE-L",
    _rows,
    aliases=("rouge",),
    source="Lin: ROUGE (2004); figures as pycocoevalcap's",
)

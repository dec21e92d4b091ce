"""BLEU-4: how many of the captions' runs of words the references have, over a whole set."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tuninglab.evaluation.metrics.metric import Metric, Scored
from tuninglab.evaluation.metrics.ngrams import LONGEST, ngrams

# pycocoevalcap's: nothing in common is next to 0, and nothing is divided by 0.
TINY, SMALL = 1e-15, 1e-9


def _statistics(one: Scored) -> list[int]:
    """What sums up: 2 + 2 LONGEST numbers.

    Words of the caption and of the reference nearest in length (the shorter of two), then of
    each length of run how many are in a reference and how many there are.
    """
    caption = ngrams(one.prediction)
    references = [ngrams(answer) for answer in one.answers]
    length = caption[0].total()
    nearest = min((abs(each[0].total() - length), each[0].total()) for each in references)[1]
    most = [Counter[tuple[str, ...]]() for _ in range(LONGEST)]
    for each in references:
        most = [have | more for have, more in zip(most, each, strict=True)]
    right = [(ours & theirs).total() for ours, theirs in zip(caption, most, strict=True)]
    return [length, nearest, *right, *(ours.total() for ours in caption)]


def _score(sums: np.ndarray) -> np.ndarray:
    """Sums of statistics (R, 2 + 2 LONGEST) -> (R,) scores."""
    words, nearest = sums[:, 0], sums[:, 1]
    right, all_runs = sums[:, 2 : 2 + LONGEST], sums[:, 2 + LONGEST :]
    precision = ((right + TINY) / (all_runs + SMALL)).prod(1) ** (1 / LONGEST)
    ratio = (words + TINY) / (nearest + SMALL)
    return precision * np.exp(np.minimum(0, 1 - 1 / ratio))


def _rows(questions: Sequence[Scored]) -> np.ndarray:
    """(N, 1 + 2 + 2 LONGEST): each caption's own BLEU-4, then what sums up."""
    statistics = np.array([_statistics(one) for one in questions], np.float64)
    statistics = statistics.reshape(-1, 2 + 2 * LONGEST)
    return np.column_stack([_score(statistics), statistics])


def _total(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The score of the sums, not the mean of scores: (N, K), (R, N) -> (R,)."""
    return _score(weights @ rows[:, 1:])


BLEU4 = Metric(
    "bleu4",
    "BLEU-4",
    _rows,
    _total,
    aliases=("bleu",),
    source="Papineni et al.: BLEU (ACL 2002); figures as pycocoevalcap's, closest length",
)

"""Scores of candidates that were ranked by their probability."""

from collections.abc import Sequence

import numpy as np

from tuninglab.evaluation.metrics.choices import right_options
from tuninglab.evaluation.metrics.metric import Metric, Scored, each


def _rows(questions: Sequence[Scored]) -> np.ndarray:
    """(N, 3): the probability of the right side, that of the positive one, whether it is right."""
    rows = np.empty((len(questions), 3))
    for row, one in zip(rows, questions, strict=True):
        positive, share = 0 in right_options(one), float(one.share or 0)
        row[:] = share if positive else 1 - share, share, positive
    return rows


def roc_auc(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How often a positive question has a larger share than a negative one; a tie is half.

    The area under the curve as Mann and Whitney's U: with the questions in the order of their
    shares, each positive one counts the negative ones below it. nan where a class is missing.

    Args:
        rows: (N, 3), as above.
        weights: (R, N), how often each question is in the sample.
    """
    order = np.argsort(rows[:, 1], kind="stable")
    shares, positive = rows[order, 1], rows[order, 2]
    # The G places where another share begins: sums from one to the next are those of a tie.
    starts = np.flatnonzero(np.r_[True, shares[1:] != shares[:-1]])
    ordered = weights[:, order]
    above = np.add.reduceat(ordered * positive, starts, axis=1)  # (R, G)
    below = np.add.reduceat(ordered * (1 - positive), starts, axis=1)
    lower = np.cumsum(below, axis=1) - below / 2
    with np.errstate(invalid="ignore"):
        return (above * lower).sum(1) / (above.sum(1) * below.sum(1))


def ranked_accuracy(one: Scored) -> float:
    """Whether the likeliest candidate is a right answer."""
    right = right_options(one)
    ranked = (place for place, option in enumerate(one.options) if option == one.prediction)
    return float(one.prediction in one.answers or any(place in right for place in ranked))


def _is_ranked(one: Scored) -> bool:
    return one.share is not None and 0 <= one.share <= 1 and bool(one.options)


ROC_AUC = Metric(
    "roc_auc",
    "area under the ROC curve",
    _rows,
    roc_auc,
    source="Mann and Whitney 1947; as OpenFlamingo has it for Hateful Memes",
    needs="ranked candidates, the first of them the positive one",
    fits=_is_ranked,
    undefined="the positive candidate is right in all of them or in none",
    aliases=("auc",),
)
RANKED_ACCURACY = Metric(
    "ranked_accuracy",
    "likeliest candidate right",
    each(ranked_accuracy),
    needs="ranked candidates",
    fits=_is_ranked,
    aliases=("ranked", "accuracy"),
)

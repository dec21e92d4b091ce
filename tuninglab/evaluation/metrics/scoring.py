"""The scores of a set of answered questions, by one metric or several."""

from collections.abc import Sequence

import numpy as np

from tuninglab.errors import UserError
from tuninglab.evaluation.metrics.metric import Metric, Scored
from tuninglab.evaluation.metrics.statistics import Interval, difference, interval


def unfit(metric: Metric, questions: Sequence[Scored]) -> int | None:
    """The place of the first question that lacks what the metric needs; None: all have it."""
    return next((k for k, one in enumerate(questions) if not metric.fits(one)), None)


def scores(
    metrics: Sequence[Metric], questions: Sequence[Scored], seed: int, whole: bool = True
) -> dict[str, Interval]:
    """The score of the questions by each metric, with its interval, by the metric's name.

    Args:
        metrics: in the order of the result.
        questions: answered; their order changes nothing.
        seed: of the intervals.
        whole: whether these are all questions. A part of them (a type) may be one that has no
            score, as a single class has no ROC-AUC: then it is None.

    Raises:
        UserError: there is no question, one lacks what a metric needs, or all of them together do.
    """
    found = {}
    for metric in metrics:
        found[metric.name] = interval(metric, _rows(metric, questions), seed)
        if whole and found[metric.name]["value"] is None:
            raise UserError(
                f"{metric.name} of {len(questions)} questions does not exist: {metric.undefined}. "
                "Score more questions, or choose another metric."
            )
    return found


def differences(
    metrics: Sequence[Metric], ours: Sequence[Scored], theirs: Sequence[Scored], seed: int
) -> dict[str, Interval]:
    """What one has scored more than the other on the same questions, by the metric's name.

    Args:
        metrics: in the order of the result.
        ours: answered questions.
        theirs: the same questions in the same order, answered otherwise.
        seed: of the intervals.

    Raises:
        UserError: as `scores`.
        ValueError: they are not as many.
    """
    return {
        metric.name: difference(metric, _rows(metric, ours), _rows(metric, theirs), seed)
        for metric in metrics
    }


def _rows(metric: Metric, questions: Sequence[Scored]) -> np.ndarray:
    if not questions:
        raise UserError(f"{metric.name}: there is no question to score")
    if (place := unfit(metric, questions)) is not None:
        raise UserError(
            f"question {place + 1} of {len(questions)} cannot be scored by {metric.name}, which "
            f"needs {metric.needs}. Choose another metric."
        )
    return metric.rows(questions)

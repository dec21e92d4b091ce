"""The scores of a set of answered questions, by one metric or several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuninglab.errors import UserError
from tuninglab.evaluation.metrics.metric import Metric, Scored
from tuninglab.evaluation.metrics.statistics import Interval, difference, interval


def unfit(metric: Metric, questions: Sequence[Scored]) -> int | None:
    """The place of the first question that lacks what the metric needs; None: all have it."""
    return next((k for k, one in enumerate(questions) if not metric.fits(one)), None)


@dataclass(frozen=True)
class Scores:
    """Answered questions and their numbers by every metric, from which sets and parts sum up.

    Args:
        metrics: in the order of all results.
        scored: the questions.
        rows: by the metric's name, (N, K) numbers of the questions. How rare the words of a caption
            are is counted over all of them, whichever part is summed up.
    """

    metrics: Sequence[Metric]
    scored: Sequence[Scored]
    rows: dict[str, np.ndarray]

    @classmethod
    def of(cls, metrics: Sequence[Metric], questions: Sequence[Scored]) -> "Scores":
        """Score every question by every metric.

        Raises:
            UserError: there is no question, or one lacks what a metric needs.
        """
        return cls(metrics, questions, {m.name: _rows(m, questions) for m in metrics})

    def figures(self, seed: int, which: np.ndarray | None = None) -> dict[str, Interval]:
        """The score by each metric with its interval, by the metric's name.

        Args:
            seed: of the intervals.
            which: of the questions (N,), as a mask; None: all. A part may have no score, as a
                single class has no ROC-AUC: then it is None.

        Raises:
            UserError: all questions together have no score.
        """
        chosen = slice(None) if which is None else which
        found = {m.name: interval(m, self.rows[m.name][chosen], seed) for m in self.metrics}
        for metric in self.metrics if which is None else ():
            if found[metric.name]["value"] is None:
                raise UserError(undefined(metric, len(self.scored)))
        return found

    def less(self, other: "Scores", seed: int) -> dict[str, Interval]:
        """What these score more than others on the same questions, by the metric's name.

        Args:
            other: the same questions in the same order, answered otherwise.
            seed: of the intervals.

        Raises:
            ValueError: they are not as many.
        """
        rows = {m.name: (m, self.rows[m.name], other.rows[m.name]) for m in self.metrics}
        return {name: difference(*both, seed) for name, both in rows.items()}


def undefined(metric: Metric, count: int) -> str:
    """Why a metric has no score of so many questions, and what to do."""
    return (
        f"{metric.name} of {count} questions does not exist: {metric.undefined}. Score more "
        "questions, or choose another metric."
    )


def _rows(metric: Metric, questions: Sequence[Scored]) -> np.ndarray:
    if not questions:
        raise UserError(f"{metric.name}: there is no question to score")
    if (place := unfit(metric, questions)) is not None:
        raise UserError(
            f"question {place + 1} of {len(questions)} cannot be scored by {metric.name}, which "
            f"needs {metric.needs}. Choose another metric."
        )
    return metric.rows(questions)

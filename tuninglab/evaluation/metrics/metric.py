"""What every metric answers: numbers of each question, and how a set of questions sums up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Scored(NamedTuple):
    """A prediction, and what is right.

    Attributes:
        prediction: what the model answered.
        answers: all right ones, at least one; of a choice with letters the letter, then the text.
        options: what there was to choose from, in the order of their letters; () if anything.
        lettered: whether the question names the options by letters, which then are answers too.
        share: of the probability of all candidates, that of the positive one; None: not ranked.
    """

    prediction: str
    answers: Sequence[str]
    options: Sequence[str] = ()
    lettered: bool = False
    share: float | None = None


# (N, K) numbers of N questions and weights (R, N) of R samples of them -> (R,) scores. A weight
# counts how often the question is in the sample; all ones are the whole set.
Total = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean of the first number of each question: (N, K), (R, N) -> (R,)."""
    return weights @ rows[:, 0] / weights.sum(1)


def each(score: Callable[[Scored], float]) -> Callable[[Sequence[Scored]], np.ndarray]:
    """The rows (N, 1) of a metric that scores every question by itself."""

    def rows(questions: Sequence[Scored]) -> np.ndarray:
        return np.array([score(one) for one in questions], np.float64).reshape(-1, 1)

    return rows


@dataclass(frozen=True)
class Metric:
    """One way to score.

    Args:
        name: in reports ("vqa_accuracy").
        title: for people.
        rows: scored questions -> (N, K) numbers; the first of each is the question's own score,
            the others are what `total` needs beside it.
        total: the score of a set.
        most: the best score there is.
        source: where the rule comes from: paper, released code.
        needs: what questions must have, in words; "" if every one will do.
        fits: whether a question has it.
        undefined: of which sets there is no score though every question fits, in words; `total` is
            nan then. "" if of none.
        aliases: shorter names, the shortest first ("vqa").
    """

    name: str
    title: str
    rows: Callable[[Sequence[Scored]], np.ndarray]
    total: Total = mean
    most: float = 1.0
    source: str = ""
    needs: str = ""
    fits: Callable[[Scored], bool] = lambda scored: True
    undefined: str = ""
    aliases: tuple[str, ...] = ()

    def of_all(self, rows: np.ndarray) -> float:
        """The score of all questions (N, K), each taken once; nan where there is none."""
        return float(self.total(rows, np.ones((1, len(rows))))[0])

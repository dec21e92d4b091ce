"""How sure a score is: intervals by drawing the questions again."""

from collections.abc import Callable, Iterator
from typing import TypedDict

import numpy as np

from tuninglab.evaluation.metrics.metric import Metric

SAMPLES = 1000
PERCENTILES = (2.5, 97.5)
# Weights in memory at a time, 8 bytes each; a metric may need some arrays as large.
MOST_WEIGHTS = 2**20


class Interval(TypedDict):
    """A score and where 95 % of the samples lie; None where there is none."""

    value: float | None
    low: float | None
    high: float | None


def interval(metric: Metric, rows: np.ndarray, seed: int, samples: int = SAMPLES) -> Interval:
    """The score of all questions with its 95 % bootstrap interval, by percentiles.

    The order of the questions changes nothing. A sample that has no score (of one class only) is
    left out. Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, 13.3.

    Args:
        metric: which score.
        rows: (N, K), its numbers of the questions.
        seed: of the samples.
        samples: R, how many sets of N questions are drawn.

    Raises:
        ValueError: there is no question.
    """
    rows = _sorted(rows)
    return _interval(lambda weights: metric.total(rows, weights), len(rows), seed, samples)


def difference(
    metric: Metric, rows_a: np.ndarray, rows_b: np.ndarray, seed: int, samples: int = SAMPLES
) -> Interval:
    """What is scored more in a than in b, with its interval: both on the same drawn questions.

    Args:
        metric: which score.
        rows_a: (N, K), its numbers of the questions.
        rows_b: (N, K), those of the same questions in the same order, answered otherwise.
        seed: of the samples.
        samples: how many sets of N questions are drawn.

    Raises:
        ValueError: there is no question, or not the same number.
    """
    if rows_a.shape != rows_b.shape:
        raise ValueError(f"rows of {rows_a.shape} and {rows_b.shape}; expected the same questions")
    both = _sorted(np.hstack([rows_a, rows_b]))
    a, b = np.hsplit(both, 2)
    return _interval(lambda w: metric.total(a, w) - metric.total(b, w), len(both), seed, samples)


def _interval(
    total: Callable[[np.ndarray], np.ndarray], count: int, seed: int, samples: int
) -> Interval:
    drawn = np.concatenate([total(weights) for weights in _weights(count, seed, samples)])
    scored = drawn[~np.isnan(drawn)]
    low, high = np.percentile(scored, PERCENTILES) if len(scored) else (np.nan, np.nan)
    value = total(np.ones((1, count)))[0]
    return {"value": _plain(value), "low": _plain(low), "high": _plain(high)}


def _sorted(rows: np.ndarray) -> np.ndarray:
    """The rows in an order of their own, so that the same questions are drawn whatever theirs is.

    Raises:
        ValueError: there is none.
    """
    if not len(rows):
        raise ValueError("no question; a score needs one or more")
    return rows[np.lexsort(rows.T[::-1])]


def _weights(count: int, seed: int, samples: int) -> Iterator[np.ndarray]:
    """How often each of N questions is drawn, (R, N) in total, some samples at a time."""
    generator = np.random.default_rng(seed)
    at_once = max(1, MOST_WEIGHTS // count)
    for start in range(0, samples, at_once):
        size = min(at_once, samples - start)
        # The questions of each sample have numbers of their own, to be counted all in one go.
        drawn = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * count)
        yield counts.reshape(size, count).astype(np.float64)


def _plain(number: float) -> float | None:
    return None if np.isnan(number) else float(number)

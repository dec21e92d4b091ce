"""Equality with a right answer."""

from collections.abc import Sequence

import numpy as np

from tuninglab.evaluation.metrics.metric import Metric, Scored


def _rows(questions: Sequence[Scored]) -> np.ndarray:
    return np.array([[one.prediction in one.answers] for one in questions], np.float64)


EXACT_MATCH = Metric("exact_match", "exactly right", _rows)

"""Scores of answers over all questions and by their type, as report.json of a run has them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tuninglab.evaluation.metrics.exact import EXACT_MATCH
from tuninglab.evaluation.metrics.metric import Metric, Scored


def scored_by_type(
    questions: Sequence[Scored], kinds: Sequence[str], metrics: Sequence[Metric] = ()
) -> dict[str, Any]:
    """Exact match over all and by type of question, and what other metrics come to over all.

    Args:
        questions: answered, with all right answers.
        kinds: the type of each.
        metrics: besides exact match.

    Returns:
        `exact_match` (0 to 1), `by_type` {type: share}, `count`, `count_by_type`, and the score by
        each metric under its name.

    Raises:
        ValueError: there is no question, or not as many types.
    """
    if len(questions) != len(kinds) or not questions:
        raise ValueError(f"{len(questions)} questions, {len(kinds)} types; expected as many")
    rows, types = EXACT_MATCH.rows(questions), np.array(kinds)
    chosen = {kind: rows[types == kind] for kind in sorted(set(kinds))}
    return {
        EXACT_MATCH.name: EXACT_MATCH.of_all(rows),
        "by_type": {kind: EXACT_MATCH.of_all(of_type) for kind, of_type in chosen.items()},
        "count": len(questions),
        "count_by_type": {kind: len(of_type) for kind, of_type in chosen.items()},
        **values(metrics, questions),
    }


def values(metrics: Sequence[Metric], questions: Sequence[Scored]) -> dict[str, float]:
    """What each metric comes to over all questions, by its name."""
    return {metric.name: metric.of_all(metric.rows(questions)) for metric in metrics}

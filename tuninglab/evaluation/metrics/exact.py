"""Answers that are wholly right, or hold what is."""

from tuninglab.evaluation.metrics.metric import Metric, Scored, each
from tuninglab.evaluation.metrics.normalising import compared


def exact_match(one: Scored) -> float:
    """Whether the prediction is a right answer, letter by letter; blanks around do not count."""
    return float(one.prediction.strip() in (answer.strip() for answer in one.answers))


def exact_match_normalised(one: Scored) -> float:
    """Whether it is after normalising."""
    pairs = (compared(one.prediction, answer) for answer in one.answers)
    return float(any(prediction == answer for prediction, answer in pairs))


def contains(one: Scored) -> float:
    """Whether the words of a right answer stand in it one after the other, after normalising."""
    pairs = (compared(one.prediction, answer) for answer in one.answers)
    return float(any(f" {answer} " in f" {prediction} " for prediction, answer in pairs))


EXACT_MATCH = Metric("exact_match", "exactly right", each(exact_match), aliases=("exact",))
EXACT_MATCH_NORMALISED = Metric(
    "exact_match_normalised",
    "right after normalising",
    each(exact_match_normalised),
    source="the normalising of vqaEval.py of the VQA challenge",
    aliases=("normalised",),
)
CONTAINS = Metric(
    "contains",
    "right answer in it",
    each(contains),
    source="the normalising of vqaEval.py of the VQA challenge",
)

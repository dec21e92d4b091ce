"""Intervals by what they must hold: the order, the seed, and the width that theory gives."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuninglab.evaluation.metrics import statistics
from tuninglab.evaluation.metrics.exact import EXACT_MATCH
from tuninglab.evaluation.metrics.metric import Metric, mean
from tuninglab.evaluation.metrics.ranked import ROC_AUC
from tuninglab.evaluation.metrics.statistics import difference, interval

NUMBERS = st.lists(st.sampled_from([0.0, 0.3, 0.6, 1.0]), min_size=1, max_size=12)


def column(numbers):
    return np.array(numbers, float).reshape(-1, 1)


@given(NUMBERS, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_the_order_of_questions_changes_nothing(numbers, shuffler):
    found = interval(EXACT_MATCH, column(numbers), seed=3, samples=50)
    assert found["value"] == pytest.approx(sum(numbers) / len(numbers))
    assert found["low"] <= found["high"]
    mixed = shuffler.sample(numbers, len(numbers))
    assert interval(EXACT_MATCH, column(mixed), seed=3, samples=50) == found


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 2), min_size=1, max_size=12))
@settings(max_examples=30)
def test_a_difference_is_that_of_the_same_questions(pairs):
    a, b = zip(*pairs, strict=True)
    found = difference(EXACT_MATCH, column(a), column(b), seed=1, samples=50)
    assert found["value"] == pytest.approx(sum(a) / len(a) - sum(b) / len(b))
    turned = difference(EXACT_MATCH, column(a[::-1]), column(b[::-1]), seed=1, samples=50)
    assert turned == found
    nothing = difference(EXACT_MATCH, column(a), column(a), seed=1, samples=50)
    assert nothing == {"value": 0, "low": 0, "high": 0}


def test_a_difference_is_surer_than_two_scores():
    # 40 of 100 differ by chance of the question alone: equal in both.
    a = column([1] * 60 + [0] * 40)
    b = column([1] * 50 + [0] * 50)
    paired = difference(EXACT_MATCH, a, b, seed=0)
    alone = interval(EXACT_MATCH, a, seed=0)
    assert paired["value"] == pytest.approx(0.1)
    assert paired["high"] - paired["low"] < 0.8 * (alone["high"] - alone["low"])


def test_the_width_is_that_of_a_share():
    rows = column([1] * 300 + [0] * 700)
    found = interval(EXACT_MATCH, rows, seed=0, samples=2000)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert found["low"] == pytest.approx(0.3 - half, abs=0.004)
    assert found["high"] == pytest.approx(0.3 + half, abs=0.004)


def test_the_seed_decides():
    rows = column(random.Random(0).choices([0, 1], k=200))
    assert interval(EXACT_MATCH, rows, seed=5) == interval(EXACT_MATCH, rows, seed=5)
    found = {interval(EXACT_MATCH, rows, seed=seed, samples=20)["low"] for seed in range(5)}
    assert len(found) > 1


def test_every_sample_has_as_many_questions_and_memory_is_bounded(monkeypatch):
    seen = []

    def total(rows, weights):
        seen.append(weights)
        return mean(rows, weights)

    watched = Metric("watched", "watched", EXACT_MATCH.rows, total)
    rows = column(range(7))
    whole = interval(watched, rows, seed=0, samples=10)
    drawn = np.concatenate(seen[:-1])
    assert drawn.shape == (10, 7)
    assert (drawn.sum(1) == 7).all() and (drawn >= 0).all() and (drawn > 1).any()
    monkeypatch.setattr(statistics, "MOST_WEIGHTS", 15)
    seen.clear()
    assert interval(watched, rows, seed=0, samples=10) == whole
    assert [len(weights) for weights in seen] == [2, 2, 2, 2, 2, 1]


def test_one_question():
    assert interval(EXACT_MATCH, column([1]), 0) == {"value": 1, "low": 1, "high": 1}


def test_samples_without_a_score_are_left_out():
    # With one negative question of four, many samples have none.
    rows = np.array([[0.9, 0.9, 1], [0.8, 0.8, 1], [0.7, 0.7, 1], [0.7, 0.3, 0]])
    assert interval(ROC_AUC, rows, 0) == {"value": 1, "low": 1, "high": 1}
    none = interval(ROC_AUC, rows[:3], 0)
    assert none == {"value": None, "low": None, "high": None}
    assert difference(ROC_AUC, rows[:3], rows[:3], 0) == none


def test_no_question_and_other_questions_are_refused():
    with pytest.raises(ValueError, match="no question"):
        interval(EXACT_MATCH, np.empty((0, 1)), 0)
    with pytest.raises(ValueError, match=r"\(2, 1\) and \(3, 1\)"):
        difference(EXACT_MATCH, column([1, 0]), column([1, 0, 1]), 0)

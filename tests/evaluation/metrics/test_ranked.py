"""The area under the curve by all pairs and by scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tuninglab.evaluation.metrics.metric import Scored
from tuninglab.evaluation.metrics.ranked import RANKED_ACCURACY, ROC_AUC, ranked_accuracy

YES_NO = ("yes", "no")


def asked(share, positive):
    return Scored("yes" if share > 0.5 else "no", YES_NO[not positive :][:1], YES_NO, share=share)


# Few different shares, so that there are ties; weights as samples have them, 0 among them.
ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.3, 1 / 3, 0.9, 1.0]), st.booleans(), st.integers(0, 3)),
    min_size=2,
    max_size=20,
)


def by_pairs(rows):
    won = pairs = 0.0
    for share, positive, weight in rows:
        for other, other_positive, other_weight in rows:
            if positive and not other_positive:
                pairs += weight * other_weight
                won += weight * other_weight * ((share > other) + 0.5 * (share == other))
    return won / pairs if pairs else math.nan


@given(ROWS)
def test_auc_by_all_pairs_and_by_scikit_learn(rows):
    numbers = ROC_AUC.rows([asked(share, positive) for share, positive, _ in rows])
    weights = np.array([[weight for *_, weight in rows], [1] * len(rows)], float)
    weighted, whole = ROC_AUC.total(numbers, weights)
    assert weighted == pytest.approx(by_pairs(rows), nan_ok=True)
    assert whole == pytest.approx(by_pairs([(s, p, 1) for s, p, _ in rows]), nan_ok=True)
    shares, positives, counts = zip(*rows, strict=True)
    if not math.isnan(weighted):
        expected = roc_auc_score(positives, shares, sample_weight=counts)
        assert weighted == pytest.approx(expected)


def test_a_questions_own_score_is_the_probability_of_what_is_right():
    rows = ROC_AUC.rows([asked(0.9, True), asked(0.9, False)])
    assert rows[:, 0] == pytest.approx([0.9, 0.1])


def test_one_class_has_no_curve():
    rows = ROC_AUC.rows([asked(0.9, True), asked(0.2, True)])
    assert np.isnan(ROC_AUC.total(rows, np.ones((1, 2)))).all()


def test_the_positive_side_is_known_by_its_letter_too():
    one = Scored("A", ["A"], ("yes", "no"), lettered=True, share=0.7)
    assert ROC_AUC.rows([one]).tolist() == [[0.7, 0.7, 1]]


@pytest.mark.parametrize(
    "prediction, answers, lettered, expected",
    [
        ("yes", ["yes"], False, 1),
        ("no", ["yes"], False, 0),
        ("no", ["no", "yes"], False, 1),
        ("yes", ["A"], True, 1),
        ("A", ["A"], True, 1),
        ("no", ["A"], True, 0),
        ("", ["yes"], False, 0),
    ],
)
def test_ranked_accuracy(prediction, answers, lettered, expected):
    assert ranked_accuracy(Scored(prediction, answers, YES_NO, lettered, 0.5)) == expected


@pytest.mark.parametrize("share, fits", [(None, False), (math.nan, False), (1.5, False), (0, True)])
def test_what_was_not_ranked_does_not_fit(share, fits):
    one = Scored("yes", ["yes"], YES_NO, share=share)
    assert (ROC_AUC.fits(one), RANKED_ACCURACY.fits(one)) == (fits, fits)
    assert not ROC_AUC.fits(Scored("yes", ["yes"], share=0.5))

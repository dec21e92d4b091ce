"""Exact match and containment, by hand."""

import pytest
from hypothesis import given

from tests.evaluation.metrics.test_normalising import TEXTS, plain
from tuninglab.evaluation.metrics.exact import contains, exact_match, exact_match_normalised
from tuninglab.evaluation.metrics.metric import Scored


@pytest.mark.parametrize(
    "prediction, answers, exactly, normalised, inside",
    [
        ("red", ["blue", "red"], 1, 1, 1),
        ("red ", ["red"], 1, 1, 1),
        ("Red.", ["red"], 0, 1, 1),
        ("a red car", ["red"], 0, 0, 1),
        ("reddish", ["red"], 0, 0, 0),
        ("a big red car", ["red car"], 0, 0, 1),
        ("red big car", ["red car"], 0, 0, 0),
        ("There are two.", ["2"], 0, 0, 1),
        ("", ["red"], 0, 0, 0),
        ("the", ["red"], 0, 0, 0),
        ("the", ["A"], 0, 0, 0),
        ("The answer is (A).", ["A"], 0, 0, 1),
        ("?", ["!"], 0, 0, 0),
        ("Чёрный кот", ["чёрный"], 0, 0, 1),
        ("x " * 5000 + "red", ["red"], 0, 0, 1),
    ],
)
def test_by_hand(prediction, answers, exactly, normalised, inside):
    one = Scored(prediction, answers)
    assert exact_match(one) == exactly
    assert exact_match_normalised(one) == normalised
    assert contains(one) == inside


@given(TEXTS, TEXTS)
def test_each_is_more_lenient_than_the_one_before(prediction, answer):
    one = Scored(prediction, [answer])
    assert exact_match(one) <= exact_match_normalised(one) <= contains(one)
    if plain(answer):
        assert exact_match_normalised(one) == (plain(prediction) == plain(answer))

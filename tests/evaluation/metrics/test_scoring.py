"""Scores of sets: order, repetition, and what cannot be scored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.metrics.test_normalising import TEXTS
from tuninglab.errors import UserError
from tuninglab.evaluation.metrics.choices import DA_ACCURACY, MC_ACCURACY
from tuninglab.evaluation.metrics.exact import CONTAINS, EXACT_MATCH, EXACT_MATCH_NORMALISED
from tuninglab.evaluation.metrics.metric import Scored
from tuninglab.evaluation.metrics.ranked import RANKED_ACCURACY, ROC_AUC
from tuninglab.evaluation.metrics.scoring import Scores, unfit
from tuninglab.evaluation.metrics.similarity import ANLS, RELAXED_ACCURACY, TOKEN_F1
from tuninglab.evaluation.metrics.vqa import VQA_ACCURACY, VQA_ACCURACY_OPENFLAMINGO

OF_TEXTS = (
    *(EXACT_MATCH, EXACT_MATCH_NORMALISED, CONTAINS, TOKEN_F1, VQA_ACCURACY),
    *(VQA_ACCURACY_OPENFLAMINGO, DA_ACCURACY, ANLS, RELAXED_ACCURACY),
)
OF_RANKS = (MC_ACCURACY, RANKED_ACCURACY, ROC_AUC)


def ranked(draw):
    share, right = draw
    return Scored("yes" if share > 0.5 else "no", [right], ("yes", "no"), share=share)


ANSWERED = st.builds(Scored, TEXTS, st.lists(TEXTS, min_size=3, max_size=10))
RANKED = st.tuples(st.floats(0, 1), st.sampled_from(["yes", "no"])).map(ranked)
# Both classes are there.
BOTH = st.lists(RANKED, min_size=1, max_size=8).map(
    lambda some: [*some, ranked((0.4, "yes")), ranked((0.6, "no"))]
)


@pytest.mark.parametrize(
    "metrics, sets", [(OF_TEXTS, st.lists(ANSWERED, min_size=1, max_size=8)), (OF_RANKS, BOTH)]
)
def test_order_changes_nothing_and_repetition_no_value(metrics, sets):
    @given(sets, st.randoms(use_true_random=False))
    @settings(max_examples=25)
    def holds(questions, shuffler):
        found = Scores.of(metrics, questions).figures(0)
        assert list(found) == [metric.name for metric in metrics]
        assert Scores.of(metrics, shuffler.sample(questions, len(questions))).figures(0) == found
        twice = Scores.of(metrics, questions * 2).figures(0)
        for metric in metrics:
            value = found[metric.name]["value"]
            assert twice[metric.name]["value"] == pytest.approx(value)
            assert -1e-9 <= value <= metric.most + 1e-9

    holds()


@pytest.mark.parametrize("metric", OF_TEXTS, ids=lambda metric: metric.name)
def test_odd_predictions_are_scored(metric):
    answers = ["red"] * 5 + ["blue"] * 5
    for prediction in ("", "the", "?!", "\n", "é\u0301 👩‍🚀 红", "\x00", "x" * 10_000):
        (row,) = metric.rows([Scored(prediction, answers)])
        assert row[0] == 0


def test_a_question_that_does_not_fit_is_refused_by_its_place():
    questions = [Scored("A", ["A"], ("a", "b"), lettered=True), Scored("A", ["A"])]
    assert unfit(MC_ACCURACY, questions) == 1
    assert unfit(MC_ACCURACY, questions[:1]) is None
    with pytest.raises(UserError, match="question 2 of 2 .* mc_accuracy, which needs options"):
        Scores.of([EXACT_MATCH, MC_ACCURACY], questions)


def test_one_class_is_refused_of_the_whole_and_none_of_a_part():
    questions = [ranked((0.3, "yes")), ranked((0.9, "yes"))]
    with pytest.raises(UserError, match="roc_auc of 2 questions .* in all of them or in none"):
        Scores.of([ROC_AUC], questions).figures(0)
    whole = np.ones(2, bool)
    part = Scores.of([ROC_AUC, RANKED_ACCURACY], questions).figures(0, whole)
    assert part["roc_auc"] == {"value": None, "low": None, "high": None}
    assert part["ranked_accuracy"]["value"] == 0.5


def test_no_question_is_refused():
    with pytest.raises(UserError, match="exact_match: there is no question"):
        Scores.of([EXACT_MATCH], [])


def test_differences_are_ours_less_theirs():
    ours = [Scored("red", ["red"]), Scored("Red", ["red"])]
    theirs = [Scored("red", ["red"]), Scored("blue", ["red"])]
    metrics = [EXACT_MATCH, EXACT_MATCH_NORMALISED]
    found = Scores.of(metrics, ours).less(Scores.of(metrics, theirs), 0)
    assert found["exact_match"] == {"value": 0, "low": 0, "high": 0}
    assert found["exact_match_normalised"]["value"] == 0.5

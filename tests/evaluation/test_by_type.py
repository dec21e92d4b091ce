"""Scores over all and by type, by counting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuninglab.evaluation.by_type import scored_by_type, values
from tuninglab.evaluation.metrics.exact import EXACT_MATCH
from tuninglab.evaluation.metrics.metric import Scored
from tuninglab.evaluation.metrics.names import metric_named

WORDS = st.sampled_from(["a", "b", "the a", "A."])
ROWS = st.lists(
    st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3), st.sampled_from("xy")), min_size=1
)


@given(ROWS)
def test_all_right_answers_count_over_all_and_by_type(rows):
    questions = [Scored(answer, right) for answer, right, _ in rows]
    kinds = [kind for *_, kind in rows]
    score = scored_by_type(questions, kinds, [metric_named("vqa")])
    assert score["count"] == len(rows)
    assert score["exact_match"] == sum(a in right for a, right, _ in rows) / len(rows)
    assert list(score["by_type"]) == sorted(set(kinds))
    for kind in set(kinds):
        of_kind = [a in right for a, right, k in rows if k == kind]
        assert score["by_type"][kind] == sum(of_kind) / len(of_kind)
        assert score["count_by_type"][kind] == len(of_kind)
    # Each beside the others as it is alone, and all as plain numbers.
    alone = [values([metric_named("vqa")], [one])["vqa_accuracy"] for one in questions]
    assert score["vqa_accuracy"] == pytest.approx(sum(alone) / len(alone))
    assert all(type(score[name]) is float for name in ("exact_match", "vqa_accuracy"))
    assert values([EXACT_MATCH], questions) == {"exact_match": score["exact_match"]}


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 questions, 2 types"):
        scored_by_type([Scored("a", ["a"])], ["x", "x"])
    with pytest.raises(ValueError):
        scored_by_type([], [])

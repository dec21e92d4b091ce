"""VQA accuracy against the released evaluation, written out plainly: person by person."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.metrics.test_normalising import TEXTS, plain
from tuninglab.evaluation.metrics.metric import Scored
from tuninglab.evaluation.metrics.vqa import (
    VQA_ACCURACY,
    VQA_ACCURACY_OPENFLAMINGO,
    official,
    openflamingo,
)


def plain_vqa(prediction, answers, leaves):
    """The released evaluation; `leaves` says which of the people are left out beside one."""

    def line(text):
        return text.replace("\n", " ").replace("\t", " ").strip()

    prediction, answers = line(prediction), [line(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = plain(prediction), [plain(answer) for answer in answers]
    scores = []
    for person in range(len(answers)):
        others = [
            answer for other, answer in enumerate(answers) if not leaves(person, other, answers)
        ]
        scores.append(min(1, len([answer for answer in others if answer == prediction]) / 3))
    return sum(scores) / len(scores)


def by_index(person, other, answers):
    return person == other


def by_text(person, other, answers):
    return answers[person] == answers[other]


ASKED = st.lists(TEXTS, min_size=1, max_size=4).flatmap(
    lambda texts: st.tuples(
        st.one_of(st.sampled_from(texts), TEXTS),
        st.lists(st.sampled_from(texts), min_size=2, max_size=12),
    )
)


@given(ASKED)
def test_official_leaves_out_by_index(asked):
    assert official(Scored(*asked)) == pytest.approx(plain_vqa(*asked, by_index))


@given(ASKED)
def test_openflamingo_leaves_out_all_that_are_equal(asked):
    assert openflamingo(Scored(*asked)) == pytest.approx(plain_vqa(*asked, by_text))


TEN = ["red"] * 3 + ["blue"] * 7


@pytest.mark.parametrize(
    "prediction, answers, expected, of_openflamingo",
    [
        ("red", ["red"] * 10, 1, 0),
        ("blue", TEN, 1, 0.3),
        ("red", TEN, (3 * 2 / 3 + 7) / 10, 0.7),
        ("green", TEN, 0, 0),
        ("Red.", TEN, 0.9, 0.7),  # they differ, so all is normalised
        ("Red.", ["red"] * 10, 0, 0),  # all say the same, so nothing is
        ("red", ["Red."] * 10, 0, 0),
        (" red\n", ["red\t"] * 10, 1, 0),
        ("red", ["red"] * 4, 1, 0),
        ("red", ["red"] * 3, 2 / 3, 0),
        ("red", ["red", "blue"], (0 + 1 / 3) / 2, 1 / 6),
        ("2", ["two"] * 5 + ["Two."] * 5, 1, 0),
        ("", TEN, 0, 0),
        ("the", ["a", "an", "the", "red", "red", "red"], (3 * 2 / 3 + 3) / 6, 0.5),
    ],
)
def test_by_hand(prediction, answers, expected, of_openflamingo):
    one = Scored(prediction, answers)
    assert official(one) == pytest.approx(expected)
    assert openflamingo(one) == pytest.approx(of_openflamingo)


@pytest.mark.parametrize(
    "prediction, answer, expected",
    [("Red.", "red", 1), ("the red", "Red", 1), ("blue", "red", 0), ("", "a", 0), ("A", "A", 1)],
)
def test_a_single_answer_is_compared_after_normalising(prediction, answer, expected):
    assert official(Scored(prediction, [answer])) == expected
    assert openflamingo(Scored(prediction, [answer])) == 0


def test_rows_hold_a_number_for_each_question():
    questions = [Scored("red", TEN), Scored("blue", TEN), Scored("x" * 10_000, TEN)]
    for metric, of_one in ((VQA_ACCURACY, official), (VQA_ACCURACY_OPENFLAMINGO, openflamingo)):
        assert metric.rows(questions)[:, 0].tolist() == [of_one(one) for one in questions]

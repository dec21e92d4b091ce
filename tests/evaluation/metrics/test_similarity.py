"""Edit distances by the usual table, relaxed accuracy and SQuAD's words by their rules."""

import collections
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuninglab.evaluation.metrics.metric import Scored
from tuninglab.evaluation.metrics.similarity import (
    anls,
    edit_distance,
    relaxed_accuracy,
    token_f1,
)

TEXTS = st.one_of(st.text("abAB é ", max_size=12), st.text(max_size=6))
# Longer than a machine word has bits.
LONG = st.text("ab", min_size=60, max_size=140)


def plain_distance(one, other):
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, row = row, [i]
        for j, wanted in enumerate(other, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted)))
    return row[-1]


@given(st.one_of(st.tuples(TEXTS, TEXTS), st.tuples(LONG, LONG)))
def test_edit_distance_by_the_table(texts):
    assert edit_distance(*texts) == plain_distance(*texts)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_anls_by_the_table(prediction, answers):
    best = 0.0
    for answer in answers:
        one = " ".join(prediction.lower().split())
        other = " ".join(answer.lower().split())
        longest = max(len(one), len(other))
        best = max(best, 1 - plain_distance(one, other) / longest if longest else 1.0)
    assert anls(Scored(prediction, answers)) == pytest.approx(best if best >= 0.5 else 0)


@pytest.mark.parametrize(
    "prediction, answers, expected",
    [
        ("kitten", ["sitting"], 4 / 7),
        ("ab", ["ax"], 0.5),  # at the threshold it counts, as in the released code
        ("abc", ["axy"], 0),
        ("Room  12\n", ["room 12"], 1),
        ("", ["a"], 0),
        ("", [""], 1),
        ("x", ["a", "X"], 1),
    ],
)
def test_anls_by_hand(prediction, answers, expected):
    assert anls(Scored(prediction, answers)) == pytest.approx(expected)


def test_long_answers_are_compared_too():
    one, other = "abc" * 3334, "abd" * 3334
    assert edit_distance(one, other) == 3334
    assert anls(Scored(one, [other, "abc"])) == pytest.approx(2 / 3)
    assert anls(Scored(one, ["abc"])) == 0


@pytest.mark.parametrize(
    "prediction, answer, expected",
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("-105", "-100", 1),
        ("100", "-100", 0),
        ("50%", "0.5", 1),
        ("50", "50%", 0),
        ("50%", "50%", 1),
        ("51%", "50%", 1),
        ("0", "0", 1),
        ("0.0", "0", 0),  # 5 % of nothing: the texts are compared
        ("0.01", "0", 0),
        ("0%", "0", 0),
        ("Red", "red", 1),
        ("red.", "red", 0),
        ("3", "three", 0),
        (" 12 ", "12", 1),
        ("1,000", "1000", 0),
        ("nan", "nan", 0),
        ("inf", "inf", 0),
        ("1e999", "5", 0),
        ("", "5", 0),
        ("", "", 1),
        ("%", "%", 1),
        ("9" * 10_000, "9", 0),
    ],
)
def test_relaxed_accuracy_by_hand(prediction, answer, expected):
    assert relaxed_accuracy(Scored(prediction, [answer])) == expected
    assert relaxed_accuracy(Scored(prediction, ["something else", answer])) == expected


@given(
    st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-3),
    st.sampled_from([0.5, 0.94, 0.96, 1.04, 1.06, -1]),
)
def test_relaxed_accuracy_is_within_a_twentieth(right, factor):
    one = Scored(repr(right * factor), [repr(right)])
    assert relaxed_accuracy(one) == (abs(factor - 1) < 0.05)


def plain_f1(prediction, answer):
    """The rule of SQuAD 2.0."""

    def words(text):
        text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text).split()

    said, right = words(prediction), words(answer)
    if len(said) == 0 or len(right) == 0:
        return int(said == right)
    left = collections.Counter(right)
    same = 0
    for word in said:
        if left[word]:
            left[word] -= 1
            same += 1
    if not same:
        return 0
    precision, recall = same / len(said), same / len(right)
    return 2 * precision * recall / (precision + recall)


SENTENCES = st.lists(st.sampled_from(["a", "The", "red", "red!", "cat.", "é", "?"]), max_size=5)


@given(SENTENCES.map(" ".join), st.lists(SENTENCES.map(" ".join), min_size=1, max_size=3))
def test_token_f1_by_the_rule(prediction, answers):
    expected = max(plain_f1(prediction, answer) for answer in answers)
    assert token_f1(Scored(prediction, answers)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "prediction, answers, expected",
    [
        ("the red cat", ["a cat"], 2 / 3),
        ("cat cat", ["cat"], 2 / 3),
        ("", ["cat"], 0),
        ("!", ["the"], 1),  # neither has a word
        ("dog", ["cat", "Dog."], 1),
    ],
)
def test_token_f1_by_hand(prediction, answers, expected):
    assert token_f1(Scored(prediction, answers)) == pytest.approx(expected)

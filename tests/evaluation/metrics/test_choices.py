"""Which option an answer chooses, by hand and by writing every option in every way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuninglab.evaluation.metrics.choices import (
    DA_ACCURACY,
    MC_ACCURACY,
    chosen,
    da_accuracy,
    mc_accuracy,
    right_options,
)
from tuninglab.evaluation.metrics.metric import Scored

OPTIONS = ("blue", "red", "a dog", "Two")


@pytest.mark.parametrize(
    "prediction, expected",
    [
        *((text, 1) for text in ("B", "b", "B.", "B)", "(B)", "(b).", " B \n", "B:", "**B**")),
        *(
            (text, 1)
            for text in ("red", "Red.", "the red", "B. red", "(B) red", "B: Red", "b) red")
        ),
        *((text, 1) for text in ("Answer: B", "The answer is B.", "answer is (B) red")),
        *((text, 1) for text in ("The correct option is: red", "Option B", "B\nIt is red.")),
        *((text, 1) for text in ("B. It is the colour of the car", "B. B", "(B)red")),
        *(("A dog", 2), ("a dog.", 2), ("dog", 2), ("A", 0), ("a", 0), ("2", 3), ("D. two", 3)),
        # Two things, or none.
        *((text, None) for text in ("B. blue", "A, B", "B or C", "A and B", "E", "E. red car")),
        *((text, None) for text in ("", "?", "the", "Be", "A red car", "red or blue", "not red")),
        *((text, None) for text in ("optional", "Bred", "é", "B" * 10_000, "A. " * 3000)),
    ],
)
def test_which_option_is_chosen(prediction, expected):
    if prediction.startswith("A. A."):
        expected = 0  # the same thing, however often
    assert chosen(Scored(prediction, ["B"], OPTIONS, lettered=True)) == expected


@pytest.mark.parametrize(
    "prediction, expected", [("B", None), ("red", 1), ("(B) red", None), ("Answer: red", 1)]
)
def test_without_letters_only_the_text_chooses(prediction, expected):
    assert chosen(Scored(prediction, ["red"], OPTIONS)) == expected


def test_options_that_are_letters():
    # Of the question "which letter?" without names for the options.
    assert chosen(Scored("B", ["B"], ("B", "A"))) == 0
    # With names, A is the first or the second: it cannot be told.
    assert chosen(Scored("A", ["A"], ("B", "A"), lettered=True)) is None
    assert chosen(Scored("B. a", ["B"], ("b", "a"), lettered=True)) == 1


def test_options_alike_are_told_apart_by_their_spelling_only():
    assert chosen(Scored("Red", ["Red"], ("red", "Red"))) == 1
    assert chosen(Scored("RED", ["Red"], ("red", "Red"))) is None
    assert mc_accuracy(Scored("RED", ["Red"], ("red", "Red"))) == 0


@given(
    st.lists(st.text("xyz", min_size=2, max_size=5), min_size=2, max_size=26, unique=True),
    st.data(),
)
def test_every_way_to_write_an_option(options, data):
    place = data.draw(st.integers(0, len(options) - 1))
    letter, text = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[place], options[place]
    way = data.draw(
        st.sampled_from(["{0}", "({0})", "{0}.", "{0}) {1}", "({0}) {1}", "{1}", "{1}."])
    )
    before = data.draw(
        st.sampled_from(["", "Answer: ", "The answer is ", "the correct choice is "])
    )
    said = before + way.format(data.draw(st.sampled_from([letter, letter.lower()])), text)
    for answers in ([letter], [text], [letter, text]):
        one = Scored(said, answers, tuple(options), lettered=True)
        assert chosen(one) == place
        assert mc_accuracy(one) == 1
    other = Scored(said, [options[place - 1]], tuple(options), lettered=True)
    assert mc_accuracy(other) == 0


def test_right_options_and_what_the_metric_needs():
    assert right_options(Scored("", ["B"], OPTIONS, lettered=True)) == {1}
    assert right_options(Scored("", ["b. Red"], OPTIONS, lettered=True)) == set()
    assert right_options(Scored("", ["red.", "two"], OPTIONS)) == {1, 3}
    assert right_options(Scored("", ["B"], OPTIONS)) == set()
    assert MC_ACCURACY.fits(Scored("", ["red"], OPTIONS))
    assert not MC_ACCURACY.fits(Scored("", ["green"], OPTIONS))
    assert not MC_ACCURACY.fits(Scored("", ["red"]))


@given(st.text("ab ", max_size=3), st.lists(st.text("ab ", max_size=3), min_size=3, max_size=10))
def test_direct_answers_by_counting(prediction, answers):
    count = len([answer for answer in answers if answer == prediction])
    assert da_accuracy(Scored(prediction, answers)) == min(1.0, count / 3)


def test_direct_answers_are_not_normalised_and_need_three():
    assert da_accuracy(Scored("Red", ["red"] * 10)) == 0
    assert DA_ACCURACY.fits(Scored("red", ["red"] * 3))
    assert not DA_ACCURACY.fits(Scored("red", ["red"] * 2))

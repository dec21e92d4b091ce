"""Own pictures, blank ones, and those of another question."""

import random

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tuninglab.data.sample import Sample
from tuninglab.evaluation.conditions import ASKED, BLANK, SHUFFLED, conditions_of, rings
from tuninglab.evaluation.questions import question_of


def asked(*counts, groups=None):
    """Questions with so many pictures each, every picture of a grey of its own."""
    grey = iter(range(256))
    questions = []
    for number, count in enumerate(counts):
        parts = [{"type": "image"}] * count + [{"type": "text", "text": "What?"}]
        turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]
        pictures = [Image.new("RGB", (2, 3), (next(grey),) * 3) for _ in range(count)]
        group = groups[number] if groups else None
        questions.append(question_of(Sample(turns, pictures, group=group), number))
    return questions


def greys(pictures):
    return [picture.getpixel((0, 0))[0] for picture in pictures]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(0, 5))
def test_every_question_gets_as_many_pictures_and_none_of_its_own(counts, seed):
    questions = asked(*counts)
    conditions = conditions_of(questions, seed)
    shown = sum(count > 0 for count in counts)
    assert (BLANK in conditions, SHUFFLED in conditions) == (shown > 0, shown > 1)
    for number, count in enumerate(counts):
        own = greys(conditions[ASKED](number))
        for name, condition in conditions.items():
            assert len(condition(number)) == count
            if name == SHUFFLED:
                assert not set(own) & set(greys(condition(number)))


def test_pictures_are_exchanged_within_groups_where_these_have_others():
    questions = asked(1, 1, 1, 1, 1, groups=["a", "b", "a", "b", "c"])
    shuffled = conditions_of(questions, 0)[SHUFFLED]
    assert [greys(shuffled(k)) for k in range(4)] == [[2], [3], [0], [1]]
    # Alone in its group, it gets the picture of any other.
    assert greys(shuffled(4)) != [4]


def test_blank_pictures_are_grey_and_of_the_same_size():
    (picture,) = conditions_of(asked(1), 0)[BLANK](0)
    assert picture.size == (2, 3) and picture.getcolors() == [(6, (128, 128, 128))]


@given(st.dictionaries(st.integers(0, 30), st.sampled_from("ab")), st.integers())
def test_rings_give_everybody_another_one_of_the_group_each_once(groups, seed):
    source = rings(groups, random.Random(seed))
    assert source == rings(dict(sorted(groups.items())), random.Random(seed))
    assert sorted(source) == sorted(source.values())
    for number, other in source.items():
        assert number != other and groups[number] == groups[other]
    alone = [n for n in groups if list(groups.values()).count(groups[n]) == 1]
    assert set(groups) - set(source) == set(alone)

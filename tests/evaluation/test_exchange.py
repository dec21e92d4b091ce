"""Controls by their definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuninglab.embedded.task import EmbeddedSamples
from tuninglab.evaluation.conditions import Blanked, Shuffled


@given(st.lists(st.sampled_from("abc"), min_size=6, max_size=30), st.integers(0, 5))
def test_shuffled_gives_everybody_anothers_picture_of_the_group(groups, seed):
    groups = sorted(groups + list("aabbcc"))
    shuffled = Shuffled(list(groups), groups, seed)
    assert sorted(shuffled.source) == list(range(len(groups)))
    assert all(groups[s] == groups[k] and s != k for k, s in enumerate(shuffled.source))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=12), st.integers(0, 5))
def test_nobody_keeps_the_own_picture_not_even_one_alone_in_its_group(groups, seed):
    shuffled = Shuffled(list(groups), groups, seed)
    assert sorted(shuffled.source) == list(range(len(groups)))
    assert all(source != k for k, source in enumerate(shuffled.source))
    # Who has company stays with it, but where a single one must join somebody.
    alone = [k for k, group in enumerate(groups) if groups.count(group) == 1]
    crossing = [k for k, s in enumerate(shuffled.source) if groups[k] != groups[s]]
    assert set(crossing) <= set(alone) if len(alone) != 1 else len(crossing) == 2


def test_one_sample_has_nobody_to_exchange_with():
    with pytest.raises(ValueError, match="at least 2"):
        Shuffled(["only"], ["a"])
    assert len(Shuffled([], [])) == 0


def test_controls_keep_the_question_and_change_the_picture():
    samples = EmbeddedSamples("val", 8)
    groups = [item.group for item in samples.items]
    shuffled, blank = Shuffled(samples, groups), Blanked(samples)
    for k in range(len(samples)):
        own = samples[k]
        assert shuffled[k].messages == blank[k].messages == own.messages
        assert shuffled[k].images[0].tobytes() != own.images[0].tobytes()
        assert len(blank[k].images[0].getcolors()) == 1
        assert blank[k].images[0].size == own.images[0].size

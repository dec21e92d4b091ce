import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuninglab.data.orders import Bins, MixedOrder, Permutation, WindowOrder
from tuninglab.data.sampler import MaskedRow, StepSampler
from tuninglab.errors import UserError

GROUPS = st.lists(st.integers(0, 6), min_size=1, max_size=60)
PAIRS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 25)), min_size=1, max_size=4)
SOURCES = PAIRS.filter(lambda pairs: any(count for _, count in pairs))
SEEDS = st.integers(0, 2**40)


class Pairs:
    """An order of bins whose epochs differ in length: epoch e has e + 1 rows in bins of two."""

    said = "pairs"

    def count(self, seed, epoch):
        return len(self.rows(seed, epoch))

    def rows(self, seed, epoch):
        rows = np.arange(epoch + 1)
        return Bins(rows, np.append(np.arange(0, len(rows), 2), len(rows)))


def test_the_usual_order_is_that_of_earlier_versions():
    # numpy's permutation from the pair, as checkpoints of older runs go on with it.
    for seed, epoch in ((0, 0), (3, 1), (2**40, 7)):
        expected = np.random.default_rng((seed, epoch)).permutation(57)
        assert Permutation(57).rows(seed, epoch).tolist() == expected.tolist()
    sampler = StepSampler(9, 2, seed=4)
    sampler.load_state_dict(
        {"epoch": 1, "step": 2, "seed": 4, "length": 9, "rows_per_step": 2, "shuffle": True}
    )
    expected = np.random.default_rng((4, 1)).permutation(9)[4:].tolist()
    assert [row for batch in sampler for row in batch] == expected


@given(groups=GROUPS, window=st.integers(1, 4), seed=SEEDS, epoch=st.integers(0, 3))
def test_a_window_order_takes_each_row_once_and_few_groups_at_a_time(groups, window, seed, epoch):
    order = pickle.loads(pickle.dumps(WindowOrder(np.array(groups), window)))
    rows = order.rows(seed, epoch)
    assert rows.dtype == np.int64 and sorted(rows) == list(range(len(groups)))
    assert order.count(seed, epoch) == len(groups)
    # Whoever holds the groups of one window never needs one again: brute force over the order.
    sizes, at, seen = Counter(groups), 0, set()
    while at < len(rows):
        now: list[int] = []
        end = at
        while end < len(rows) and (groups[rows[end]] in now or len(now) < window):
            now += [groups[rows[end]]] if groups[rows[end]] not in now else []
            end += 1
        assert not seen & set(now)
        assert end - at == sum(sizes[group] for group in now)
        seen, at = seen | set(now), end


def test_a_window_order_mixes_and_epochs_differ():
    order = WindowOrder(np.repeat(np.arange(50), 20), window=10)
    first, second = order.rows(1, 0), order.rows(1, 1)
    assert first.tolist() == order.rows(1, 0).tolist() != second.tolist()
    assert order.rows(2, 0).tolist() != first.tolist()
    # Groups come in another order than in the file, and rows of a window next to each other.
    assert abs(np.corrcoef(np.arange(1000), first)[0, 1]) < 0.5
    near = [len(set(first[i : i + 32] // 20)) for i in range(0, 960, 32)]
    assert np.mean(near) > 8
    with pytest.raises(ValueError, match="window is 0"):
        WindowOrder(np.zeros(3), 0)


@given(sources=SOURCES, seed=SEEDS, epochs=st.integers(1, 5))
def test_a_mixture_gives_exact_counts_and_no_row_far_more_often(sources, seed, epochs):
    sizes, counts = zip(*sources, strict=True)
    order = pickle.loads(pickle.dumps(MixedOrder(sizes, counts)))
    starts = np.cumsum([0, *sizes])
    seen: Counter = Counter()
    for epoch in range(epochs):
        rows = order.rows(seed, epoch)
        assert rows.dtype == np.int64 and len(rows) == order.count(seed, epoch) == sum(counts)
        of_source = np.searchsorted(starts, rows, side="right") - 1
        assert np.bincount(of_source, minlength=len(sizes)).tolist() == list(counts)
        seen.update(rows.tolist())
    for number, size in enumerate(sizes):
        often = [seen[row] for row in range(starts[number], starts[number] + size)]
        assert max(often) - min(often) <= 1


def test_a_mixture_mixes_and_refuses_what_cannot_be():
    order = MixedOrder((100, 100), (100, 100))
    first = order.rows(0, 0)
    assert 30 < sum(first[:100] < 100) < 70 and first.tolist() != order.rows(0, 1).tolist()
    # The two sources go their own ways.
    one, two = first[first < 100], first[first >= 100] - 100
    assert one.tolist() != two.tolist()
    for sizes, counts in (((3,), (1, 2)), ((0,), (1,)), ((3,), (-1,)), ((3,), (0,))):
        with pytest.raises(ValueError, match="counts are"):
            MixedOrder(sizes, counts)


@st.composite
def orders(draw):
    if draw(st.booleans()):
        return WindowOrder(np.array(draw(GROUPS)), draw(st.integers(1, 4)))
    return MixedOrder(*zip(*draw(SOURCES), strict=True))


@given(order=orders(), taken=st.integers(0, 20), seed=SEEDS)
def test_any_order_goes_on_exactly_with_two_processes_after_one(order, taken, seed):
    one = StepSampler(10, 4, seed=seed, order=order)
    for _ in range(taken):
        one.advance()
    ranks = [StepSampler(10, 2, 1, rank, 2, seed, order=order) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(one.state_dict())
        assert (rank.epoch, rank.step) == (one.epoch, one.step)
    batches = [iter(rank) for rank in ranks]
    for whole in one:
        parts = [next(batch) for batch in batches]
        real = [[row for row in part if not isinstance(row, MaskedRow)] for part in parts]
        assert real == [whole[0::2], whole[1::2]]
    assert all(next(batch, None) is None for batch in batches)


def test_epochs_of_bins_may_differ_in_steps():
    sampler = StepSampler(10, 1, order=Pairs())
    assert [sampler.steps_in(epoch) for epoch in range(4)] == [1, 1, 2, 2]
    found = []
    for _ in range(4):
        sampler.advance()
        found.append((sampler.epoch, sampler.step))
    assert found == [(1, 0), (2, 0), (2, 1), (3, 0)]
    assert list(sampler) == [[(0, 1)], [(2, 3)]] and len(sampler) == 2
    # Two processes, three bins: the last place of the second is filled with a row of no labels.
    second = StepSampler(10, 1, rank=1, world_size=2, order=Pairs())
    second.epoch = 4
    assert list(second) == [[(2, 3)], [4]]
    assert isinstance(list(second)[1][0], MaskedRow)


def test_another_order_cannot_be_gone_on_with():
    window = StepSampler(6, 1, order=WindowOrder(np.array([0, 0, 1, 1, 2, 2]), 2))
    state = window.state_dict()
    for other in (
        StepSampler(6, 1),
        StepSampler(6, 1, order=WindowOrder(np.array([0, 0, 1, 1, 2, 2]), 3)),
        StepSampler(6, 1, order=WindowOrder(np.array([0, 1, 1, 1, 2, 2]), 2)),
    ):
        with pytest.raises(UserError, match="the order of the data was"):
            other.load_state_dict(state)
    with pytest.raises(UserError, match="step 6 of epoch 0 is beyond the data"):
        window.load_state_dict(state | {"step": 6})


def test_bins_are_a_sequence_of_tuples():
    bins = Bins(np.array([5, 2, 7]), np.array([0, 2, 3]))
    assert list(bins) == [(5, 2), (7,)] == bins[:5] and bins[-1] == (7,) and len(bins) == 2

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuninglab.data.sampler import MaskedRow, StepSampler
from tuninglab.errors import UserError

SIZES = {
    "length": st.integers(1, 60),
    "batch_size": st.integers(1, 5),
    "accumulation": st.integers(1, 4),
    "world_size": st.integers(1, 4),
}


def steps(sampler):
    """The rows of each step of the epoch, micro-batch by micro-batch."""
    batches = iter(sampler)
    counts = [sampler.micro_batches(step) for step in range(sampler.step, sampler.steps_per_epoch)]
    found = [list(islice(batches, count)) for count in counts]
    assert next(batches, None) is None and sum(counts) == len(sampler)
    return found


def real(batches):
    return [row for batch in batches for row in batch if not isinstance(row, MaskedRow)]


@given(**SIZES, seed=st.integers(0, 2**40))
def test_every_row_is_taken_once_an_epoch_and_ranks_share_a_steps_rows(
    length, batch_size, accumulation, world_size, seed
):
    ranks = [
        StepSampler(length, batch_size, accumulation, rank, world_size, seed)
        for rank in range(world_size)
    ]
    single = StepSampler(length, batch_size * world_size * accumulation, seed=seed)
    of_ranks = [steps(rank) for rank in ranks]
    of_one = steps(single)
    assert sorted(real(batch for step in of_one for batch in step)) == list(range(length))
    for number, (whole,) in enumerate(of_one):
        of_step = [of_rank[number] for of_rank in of_ranks]
        assert sorted(real(batch for batches in of_step for batch in batches)) == sorted(whole)
        for rank, batches in enumerate(of_step):
            assert real(batches) == whole[rank::world_size]  # interleaved
            assert all(1 <= len(batch) <= batch_size for batch in batches)
            assert all(len(batch) == 1 for batch in batches if isinstance(batch[0], MaskedRow))
        assert len({len(batches) for batches in of_step}) == 1
        full = len(whole) == batch_size * accumulation * world_size
        assert len(of_step[0]) == accumulation or not full


@given(**SIZES, seed=st.integers(0, 9), taken=st.integers(0, 40))
def test_a_resumed_sampler_goes_on_exactly(
    length, batch_size, accumulation, world_size, seed, taken
):
    arguments = (length, batch_size, accumulation, world_size - 1, world_size, seed)
    first = StepSampler(*arguments)
    for _ in range(taken):
        first.advance()
    assert divmod(taken, first.steps_per_epoch) == (first.epoch, first.step)
    second = StepSampler(*arguments)
    list(islice(second, 3))  # drawing ahead moves nothing
    second.load_state_dict(first.state_dict())
    assert list(second) == list(first)
    full = StepSampler(*arguments)
    full.epoch = first.epoch
    assert steps(full)[first.step :] == steps(second)


def test_epochs_differ_and_depend_on_the_seed_only():
    def order(seed, epoch):
        sampler = StepSampler(100, 1, seed=seed)
        sampler.epoch = epoch
        return sampler.entries().tolist()

    assert order(0, 0) == order(0, 0)
    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1), list(range(100))]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert StepSampler(100, 1, shuffle=False).entries().tolist() == list(range(100))


def test_resuming_with_other_data_or_settings_is_refused_but_other_processes_are_not():
    state = StepSampler(100, batch_size=4, accumulation=2).state_dict()
    StepSampler(100, batch_size=2, accumulation=2, world_size=2).load_state_dict(state)
    with pytest.raises(UserError, match="records in the data was 100, now it is 99"):
        StepSampler(99, batch_size=4, accumulation=2).load_state_dict(state)
    with pytest.raises(UserError, match="rows per step .* was 8, now it is 4"):
        StepSampler(100, batch_size=4).load_state_dict(state)
    with pytest.raises(UserError, match="seed was 0, now it is 5"):
        StepSampler(100, 4, 2, seed=5).load_state_dict(state)


def test_impossible_sizes_are_refused():
    for sizes in ((0, 1), (1, 0), (1, 1, 0)):
        with pytest.raises(ValueError, match="is 0; expected at least 1"):
            StepSampler(*sizes)
    with pytest.raises(ValueError, match="rank is 2 of 2"):
        StepSampler(1, 1, rank=2, world_size=2)

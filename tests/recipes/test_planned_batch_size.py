"""The largest batch that fits, against trying every size."""

from types import SimpleNamespace
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from tuninglab.config import FinetuneConfig
from tuninglab.console import Choices
from tuninglab.data.sample import Sample
from tuninglab.data.sources import Records
from tuninglab.recipes import planned_batch_size
from tuninglab.recipes.planned_batch_size import FEWEST_STEPS, NEAR, largest_batch
from tuninglab.recipes.planned_machine import Machine
from tuninglab.recipes.planned_run import MEMORY_ERROR


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 50),
    st.floats(0, 0.02),
    st.integers(1, 20_000),
    st.integers(1, 50_000),
    st.integers(1, 4),
    st.booleans(),
)
def test_it_is_the_largest_that_fits(held, row, bend, available, records, processes, whole):
    def needed(size):
        return held + int(row * size * (1 + bend * size))

    planned = []

    def plan_run(config, data, machine, models, quick):
        planned.append(config.batch_size)
        size = needed(config.batch_size)
        return SimpleNamespace(needed=size, held={"weights": held}, fits=size <= available)

    config = FinetuneConfig(batch_size="auto", epochs=2, max_steps=None if whole else 7)
    data = SimpleNamespace(splits=SimpleNamespace(train=range(records)), base=None)
    machine, choices = Machine("cpu", "", processes, available, None), Choices(aloud=False)
    with mock.patch.object(planned_batch_size, "plan_run", plan_run):
        size = largest_batch(config, data, machine, None, choices)  # pyright: ignore
    room = available / (1 + MEMORY_ERROR)
    steps = FEWEST_STEPS / 2 if whole else 1
    most = max(1, int(records / steps / processes))
    assert 1 <= size <= most
    assert choices.made[0]["value"] == str(size)
    told = "even one row needs more" in choices.made[0]["reason"]
    assert told == (needed(1) > room)
    if needed(1) > room:
        assert size == 1
    else:
        assert needed(size) <= room
        larger = size + size // NEAR + 1
        assert larger > most or needed(larger) > room
    assert len(planned) < 25


def test_packed_rows_are_counted_where_steps_are_to_be_left():
    samples = [Sample.known(messages=[], images=[b""], origin=str(n)) for n in range(400)]
    base = SimpleNamespace(tokens=lambda some: [10] * len(some), tokens_key=None)
    data = SimpleNamespace(splits=SimpleNamespace(train=Records(samples)), base=base)

    def plan_run(config, data, machine, models, quick):
        return SimpleNamespace(needed=config.batch_size, held={"weights": 0}, fits=True)

    machine, choices = Machine("cpu", "", 1, 10**9, None), Choices(aloud=False)
    # Four records of 10 tokens fill a row of 40: 100 rows, of which 5 leave 20 steps.
    for packed, most in ((40, 5), (None, 20)):
        config = FinetuneConfig(data="x", batch_size="auto", epochs=1, pack_tokens=packed)
        with mock.patch.object(planned_batch_size, "plan_run", plan_run):
            size = largest_batch(config, data, machine, None, choices)  # pyright: ignore
        assert size == most

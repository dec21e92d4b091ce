"""Batches that are planned, against those that a loader makes."""

from types import SimpleNamespace

import numpy as np
import pytest

from tuninglab.config import FinetuneConfig
from tuninglab.console import Choices
from tuninglab.data.orders import Permutation
from tuninglab.data.packing import PackedOrder
from tuninglab.data.sample import Sample
from tuninglab.data.sampler import MaskedRow, StepSampler
from tuninglab.data.sources import Records, Splits
from tuninglab.embedded.task import EmbeddedSamples
from tuninglab.evaluation.task import Task
from tuninglab.recipes.planned_batches import train_batches, val_batches
from tuninglab.recipes.planned_data import measure_data, undrawn


def records(count: int, seed: int = 0) -> Records:
    """Records of any length: message k stands for k tokens, of which a third are answers."""
    rng = np.random.default_rng(seed)
    sizes = zip(rng.integers(5, 90, count), rng.integers(0, 4, count), strict=True)
    return Records(
        [Sample.known(messages=[int(n)], images=[b""] * int(m), origin=str(n)) for n, m in sizes]
    )


def base():
    return SimpleNamespace(
        tokens=lambda samples: [sample.messages[0] for sample in samples],
        answer_ids=lambda samples: [[1] * (sample.messages[0] // 3) for sample in samples],
        tokens_key=None,
    )


def measured(splits, base):
    return measure_data(Task(splits), base)


def made(samples, config, processes, order=None):
    """(rows, tokens, answers, pictures, documents) of every pass that all ranks' loaders make."""
    found, steps = [], 0
    for rank in range(processes):
        sampler = StepSampler(
            len(samples), config.batch_size, config.gradient_accumulation_steps, rank, processes,
            config.seed, order=order,
        )  # fmt: skip
        for epoch in range(config.epochs):
            sampler.epoch = epoch
            steps = config.epochs * sampler.steps_per_epoch
            for batch in sampler:
                if any(isinstance(row, MaskedRow) for row in batch):
                    continue
                rows = [[samples[r] for r in np.atleast_1d(row)] for row in batch]
                tokens = max(sum(s.messages[0] for s in row) for row in rows)
                answers = sum(s.messages[0] // 3 for row in rows for s in row)
                pictures = max(sum(len(s.images) for s in row) for row in rows)
                documents = max(map(len, rows)) if config.pack_tokens else 0
                found.append((len(rows), tokens, answers, max(1, pictures), documents))
    return found, steps


@pytest.mark.parametrize(
    ("count", "size", "accumulation", "processes", "packed"),
    [(50, 4, 1, 1, None), (50, 4, 3, 2, None), (23, 1, 1, 1, None), (7, 8, 1, 1, None),
     (60, 2, 2, 2, 100), (40, 1, 1, 1, 64)],
)  # fmt: skip
def test_the_batches_are_those_that_loaders_make(count, size, accumulation, processes, packed):
    samples = records(count)
    config = FinetuneConfig(
        data="x", batch_size=size, gradient_accumulation_steps=accumulation, epochs=3,
        pack_tokens=packed,
    )  # fmt: skip
    data = measured(Splits("", samples, Records([])), base())
    batches = train_batches(data, config, processes, Choices())
    order = None
    if packed:
        lengths, pictures = (
            np.array(a)
            for a in ([s.messages[0] for s in samples], [len(s.images) for s in samples])
        )
        order = PackedOrder(Permutation(count), lengths, pictures, packed)
    found, steps = made(samples, config, processes, order)
    assert batches.steps == steps
    assert batches.largest[0].rows * batches.largest[0].tokens == max(r * t for r, t, *_ in found)
    most = max(rows * pictures for rows, _, _, pictures, _ in found)
    assert max(s.rows * s.pictures for s in batches.largest) == most
    assert all((*shape[:4], shape.documents) in found for shape in batches.largest)
    assert bool(batches.mean.documents) == bool(packed)
    means = np.mean(found, axis=0)
    assert np.allclose(np.array(batches.mean)[[0, 1, 3, 5]], means[[0, 1, 3, 4]], atol=0.51)
    assert batches.mean.answer_tokens == pytest.approx(means[2], rel=0.1, abs=1)


def test_a_run_of_few_steps_meets_only_its_own_batches():
    samples = records(100)
    config = FinetuneConfig(data="x", batch_size=2, max_steps=3, epochs=2)
    data = measured(Splits("", samples, Records([])), base())
    batches = train_batches(data, config, 1, Choices())
    rows = np.random.default_rng((0, 0)).permutation(100)[:6].reshape(3, 2)
    tokens = [max(samples[int(r)].messages[0] for r in pair) for pair in rows]
    assert (batches.steps, batches.passes) == (3, 3)
    assert batches.largest[0].tokens == max(tokens)
    assert batches.mean.tokens == round(np.mean(tokens))


def test_validation_takes_all_its_records_once():
    data = measured(Splits("", records(10), records(11, 1)), base())
    batches = val_batches(data, FinetuneConfig(data="x", batch_size=4), 1)
    assert batches is not None
    assert batches.passes == 3
    assert val_batches(measured(Splits("", records(3), Records([])), base()),
                       FinetuneConfig(data="x", batch_size=4), 1) is None  # fmt: skip


def test_generated_pictures_are_not_drawn(monkeypatch):
    drawn = EmbeddedSamples("train", 6, 3)
    dialogues = [sample.messages for sample in drawn]
    monkeypatch.setattr(EmbeddedSamples, "__getitem__", None)
    made = undrawn(drawn)
    assert [sample.messages for sample in made] == dialogues
    assert [len(sample.images) for sample in made] == [1] * 6

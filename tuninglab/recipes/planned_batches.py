"""The forward passes that a run will make of its data, by lengths alone: how large, how many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tuninglab.config import TrainingConfig
from tuninglab.console import Choices
from tuninglab.data.orders import Bins, Rows
from tuninglab.data.sampler import StepSampler
from tuninglab.evaluation.task import evenly
from tuninglab.inspection.cost import Shape
from tuninglab.recipes.planned_data import ANSWERED, Lengths, PlannedData
from tuninglab.recipes.row_orders import train_order, val_order

# Epochs looked at: those after them mix the same records.
EPOCHS = 8
# Passes of which the records are counted, for the mean.
LOOKED_AT = 20


class Batches(NamedTuple):
    """The forward passes of a run.

    Args:
        largest: those that can need the most memory: the one of most text, and the one of most
            pictures where that is another.
        mean: of all.
        steps: optimizer steps.
        passes: forward passes of each process, over all steps.
    """

    largest: list[Shape]
    mean: Shape
    steps: int
    passes: int


def train_batches(
    data: PlannedData, config: TrainingConfig, processes: int, choices: Choices
) -> Batches:
    """The batches of training by decided settings; what is chosen for their order is said."""
    size: Any = config.batch_size
    order = train_order(data.splits.train, config, data.base, processes, choices)
    sampler = StepSampler(
        len(data.splits.train),
        size,
        config.gradient_accumulation_steps,
        world_size=processes,
        seed=config.seed,
        order=order,
    )
    epochs: Any = config.epochs
    steps = config.max_steps or sum(sampler.steps_in(epoch) for epoch in range(epochs))
    made, seen = [], 0
    for epoch in range(min(epochs, EPOCHS)):
        entries = order.rows(config.seed, epoch)
        made.append(_passes_of(data.train, entries, sampler, steps - seen))
        seen += sampler.steps_in(epoch)
        if seen >= steps:
            break
    # One pass of all processes together, as often as there are steps.
    share = sum(len(set(passes.number)) for passes in made) / min(seen, steps)
    return _batches(data.train, made, steps, round(share * steps))


def val_batches(data: PlannedData, config: TrainingConfig, processes: int) -> Batches | None:
    """The batches of one validation; None without validation records."""
    size: Any = config.batch_size
    made = []
    for lengths in data.val:
        order = val_order(lengths.samples, config, data.base)
        sampler = StepSampler(
            len(lengths.samples), size, world_size=processes, seed=config.seed, order=order
        )
        entries = order.rows(config.seed, 0)
        made.append((lengths, _passes_of(lengths, entries, sampler, sampler.steps_in(0))))
    if not made:
        return None
    sets = [_batches(lengths, [passes], 0, len(set(passes.number))) for lengths, passes in made]
    count = sum(batches.passes for batches in sets)
    means = np.array([np.array(batches.mean) * batches.passes for batches in sets]).sum(0) / count
    largest = _largest([shape for batches in sets for shape in batches.largest])
    return Batches(largest, Shape(*np.ceil(means).astype(int).tolist()), 0, count)


@dataclass
class _Passes:
    """Forward passes of all processes (G,): which pass of its process each is, and its sizes.

    Documents are those of the row that has most; 0 where rows are not packed.
    """

    number: list[int]
    rows: Rows
    tokens: Rows
    pictures: Rows
    documents: Rows
    members: Callable[[int], list[int]]


def _passes_of(lengths: Lengths, entries: Rows | Bins, sampler: StepSampler, steps: int) -> _Passes:
    """The forward passes that a `StepSampler` makes of the first steps of an epoch's entries."""
    tokens, pictures = lengths.tokens, lengths.pictures
    if isinstance(entries, Bins):
        starts, documents = entries.starts[:-1], np.diff(entries.starts)
        tokens, pictures = (np.add.reduceat(a[entries.rows], starts) for a in (tokens, pictures))
    else:
        tokens, pictures, documents = tokens[entries], pictures[entries], np.zeros_like(entries)
    place = np.arange(min(len(tokens), steps * sampler.rows_per_step))
    step, inside = np.divmod(place, sampler.rows_per_step)
    micro, rank = inside // sampler.world_size // sampler.batch_size, inside % sampler.world_size
    number = step * sampler.accumulation + micro
    key = number * sampler.world_size + rank
    laid = np.argsort(key, kind="stable")
    _, first, rows = np.unique(key[laid], return_index=True, return_counts=True)

    def members(group: int) -> list[int]:
        """The numbers of the records in a pass."""
        chosen = laid[first[group] : first[group] + rows[group]].tolist()
        return [row for e in chosen for row in np.atleast_1d(entries[e]).tolist()]

    sizes = (np.maximum.reduceat(a[laid], first) for a in (tokens, pictures, documents))
    longest, most, packed = sizes
    # Rows without a picture get a blank one (see Collator).
    most = np.maximum(most, 1)
    return _Passes(number[laid][first].tolist(), rows, longest, most, packed, members)


def _batches(lengths: Lengths, made: list[_Passes], steps: int, passes: int) -> Batches:
    candidates = []
    for one in made:
        text, seen = one.rows * one.tokens, one.rows * one.pictures
        for order in ((seen, text), (text, seen)):
            group = int(np.lexsort(order)[-1])
            rows, tokens = int(one.rows[group]), int(one.tokens[group])
            answers = lengths.answers(one.members(group))
            pictures, documents = int(one.pictures[group]), int(one.documents[group])
            candidates.append(Shape(rows, tokens, answers, pictures, documents=documents))
    means = (
        np.concatenate([getattr(one, name) for one in made]).mean()
        for name in ("rows", "tokens", "pictures", "documents")
    )
    some = evenly(range(len(lengths.samples)), ANSWERED)
    each = lengths.answers(some) / max(1, len(some))
    # A packed row has several records.
    looked_at = [(one, group) for one in made for group in evenly(range(len(one.rows)), LOOKED_AT)]
    records = np.mean([len(one.members(group)) for one, group in looked_at])
    mean_rows, mean_tokens, pictures, documents = map(round, means)
    answered = round(records * each)
    mean = Shape(mean_rows, mean_tokens, answered, pictures, documents=documents)
    return Batches(_largest(candidates), mean, steps, max(1, passes))


def _largest(shapes: Sequence[Shape]) -> list[Shape]:
    """Of some shapes the one of most text, and the one of most pictures where it is another."""
    text = max(shapes, key=lambda s: (s.rows * s.tokens, s.rows * s.pictures, s.answer_tokens))
    seen = max(shapes, key=lambda s: (s.rows * s.pictures, s.rows * s.tokens, s.answer_tokens))
    return [text] if seen.rows * seen.pictures == text.rows * text.pictures else [text, seen]

"""The batches that a run will make of its data, from lengths alone: no picture is decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from tuninglab.config import TrainingConfig
from tuninglab.console import Choices
from tuninglab.data.mixture import Joined
from tuninglab.data.orders import Bins, Rows
from tuninglab.data.reading.lengths import lengths_of
from tuninglab.data.reading.splits import chosen
from tuninglab.data.sample import Pair, Sample
from tuninglab.data.sampler import StepSampler
from tuninglab.data.sources import Records, Splits
from tuninglab.data.tokens import texts_ids
from tuninglab.embedded.task import EmbeddedSamples, dialogue
from tuninglab.evaluation.task import Task, evenly
from tuninglab.inspection.cost import Shape
from tuninglab.recipes.recipe import Base
from tuninglab.recipes.row_orders import pictures_of, train_order, val_order

# Epochs looked at: those after them mix the same records.
EPOCHS = 8
# Pairs of texts are counted anew at each start: of more, as many evenly over all.
MOST_PAIRS = 30_000
# Records whose answers are counted for the mean.
ANSWERED = 500
# How often the scored records are answered: before, after, with blank and with other pictures; of
# records without pictures the first two.
TIMES_SCORED, TEXTS_SCORED = 4, 2


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


@dataclass
class Lengths:
    """What is known of the rows of a split.

    Args:
        samples: of the split; pictures of generated ones are not drawn.
        tokens: of each (N,), as a forward pass reads them; of a pair of texts, of its source.
        pictures: of each (N,).
        answers: the tokens that some rows learn, by their numbers.
    """

    samples: Sequence[Any]
    tokens: np.ndarray
    pictures: np.ndarray
    answers: Callable[[Sequence[int]], int]


class Scores(NamedTuple):
    """What is answered before and after the training.

    Args:
        rows: the questions.
        times: how often each is answered.
        most: tokens of an answer.
    """

    rows: Lengths
    times: int
    most: int


@dataclass
class PlannedData:
    """The data of a run: its splits, without pictures, and how long their rows are.

    Args:
        splits: what trains and what validates.
        train: of the first.
        val: of the second, set by set.
        scores: what is answered before and after; None: nothing.
        base: what counts, by tokenizer and prompt.
        note: what of it is an estimate.
    """

    splits: Splits
    train: Lengths
    val: list[Lengths]
    scores: Scores | None
    base: Base
    note: str = ""


def measure_data(task: Task, base: Base, note: str = "") -> PlannedData:
    """How long the rows of all splits are.

    Args:
        task: settled: its splits are what the model can read, and what it scores is chosen.
        base: counts tokens and answers; its model is not asked.
        note: what of the counts is an estimate.
    """
    splits = task.splits
    parts = splits.val.sources if isinstance(splits.val, Joined) else [splits.val]
    splits = replace(splits, train=undrawn(splits.train), val=undrawn(splits.val))
    val = [_lengths(undrawn(part), base) for part in parts if len(part)]
    scores = _scores(task, base)
    count = len(splits.train)
    if count > MOST_PAIRS and isinstance(splits.train[0], Pair):
        note += f"Lengths are those of {MOST_PAIRS:,} of {count:,} records. "
    return PlannedData(splits, _lengths(splits.train, base), val, scores, base, note)


def _scores(task: Task, base: Base) -> Scores | None:
    """What a task has answered: one that a Python program brings may have nothing."""
    scored: Any = getattr(task, "scored", ())
    if not scored:
        return None
    # Those of blank and of other pictures come besides.
    times = TIMES_SCORED if getattr(task, "groups", ()) else TEXTS_SCORED
    most: int = getattr(task, "ANSWER_TOKENS", 0)
    return Scores(_lengths(undrawn(scored), base), times, most)


def undrawn(samples: Any) -> Any:
    """Samples that draw a picture whenever they are asked for, without it; others as they are."""
    if not isinstance(samples, EmbeddedSamples):
        return samples
    fields = ({"messages": dialogue(item.questions), "images": [b""]} for item in samples.items)
    return Records([Sample.known(**known, origin="") for known in fields])


def without_longer(data: PlannedData, longest: int) -> PlannedData:
    """The same data without the training records of more tokens."""
    kept = np.flatnonzero(data.train.tokens <= longest)
    train = chosen(data.splits.train, kept)
    return replace(data, splits=replace(data.splits, train=train), train=_lengths(train, data.base))


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
    """Forward passes of all processes (G,): which pass of its process each is, and its sizes."""

    number: list[int]
    rows: Rows
    tokens: Rows
    pictures: Rows
    members: Callable[[int], list[int]]


def _passes_of(lengths: Lengths, entries: Rows | Bins, sampler: StepSampler, steps: int) -> _Passes:
    """The forward passes that a `StepSampler` makes of the first steps of an epoch's entries."""
    tokens, pictures = lengths.tokens, lengths.pictures
    if isinstance(entries, Bins):
        starts = entries.starts[:-1]
        tokens, pictures = (np.add.reduceat(a[entries.rows], starts) for a in (tokens, pictures))
    else:
        tokens, pictures = tokens[entries], pictures[entries]
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

    longest, most = (np.maximum.reduceat(a[laid], first) for a in (tokens, pictures))
    # Rows without a picture get a blank one (see Collator).
    return _Passes(number[laid][first].tolist(), rows, longest, np.maximum(most, 1), members)


def _batches(lengths: Lengths, made: list[_Passes], steps: int, passes: int) -> Batches:
    candidates = []
    for one in made:
        text, seen = one.rows * one.tokens, one.rows * one.pictures
        for order in ((seen, text), (text, seen)):
            group = int(np.lexsort(order)[-1])
            sizes = (int(a[group]) for a in (one.rows, one.tokens))
            answers = lengths.answers(one.members(group))
            candidates.append(Shape(*sizes, answers, int(one.pictures[group])))
    rows, tokens, pictures = (
        np.concatenate([getattr(one, name) for one in made]).mean()
        for name in ("rows", "tokens", "pictures")
    )
    some = evenly(range(len(lengths.samples)), ANSWERED)
    each = lengths.answers(some) / max(1, len(some))
    # A packed row has several records.
    records = np.mean([len(one.members(g)) for one in made for g in _few(len(one.rows))])
    mean = (rows, tokens, records * each, pictures)
    return Batches(_largest(candidates), Shape(*map(round, mean)), steps, max(1, passes))


def _few(count: int) -> list[int]:
    return evenly(range(count), 20)


def _largest(shapes: Sequence[Shape]) -> list[Shape]:
    """Of some shapes the one of most text, and the one of most pictures where it is another."""
    text = max(shapes, key=lambda s: (s.rows * s.tokens, s.rows * s.pictures, s.answer_tokens))
    seen = max(shapes, key=lambda s: (s.rows * s.pictures, s.rows * s.tokens, s.answer_tokens))
    return [text] if seen.rows * seen.pictures == text.rows * text.pictures else [text, seen]


def _lengths(samples: Sequence[Any], base: Base) -> Lengths:
    def answers(rows: Sequence[int]) -> int:
        """The tokens that some rows learn."""
        return sum(map(len, base.answer_ids([samples[row] for row in rows])))

    if not isinstance(samples[0], Pair):
        tokens = lengths_of(samples, base.tokens, base.tokens_key)
        return Lengths(samples, tokens.astype(np.int64), pictures_of(samples), answers)
    some = evenly(range(len(samples)), MOST_PAIRS)
    sources = texts_ids([samples[row].source for row in some], base.processor)
    # Each ends in a token of its own.
    counted = np.array(list(map(len, sources)), np.int64) + 1
    # Each of the others counts as the one before it that was counted.
    tokens = counted[np.searchsorted(some, np.arange(len(samples)), "right") - 1]
    return Lengths(samples, tokens, np.zeros(len(samples), np.int64), answers)

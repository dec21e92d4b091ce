"""The batches that a run will make of its data, from lengths alone: no picture is decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from transformers import CLIPImageProcessorPil

from tuninglab.data.batches import image_pixels
from tuninglab.data.mixture import Joined
from tuninglab.data.reading.lengths import lengths_of
from tuninglab.data.reading.splits import chosen
from tuninglab.data.sample import Pair, Sample
from tuninglab.data.sources import Records, Splits
from tuninglab.data.tokens import texts_ids
from tuninglab.embedded.task import EmbeddedSamples, dialogue
from tuninglab.errors import UserError
from tuninglab.evaluation.task import Task, evenly
from tuninglab.recipes.recipe import Base
from tuninglab.recipes.row_orders import pictures_of

# Pairs of texts are counted anew at each start: of more, as many evenly over all.
MOST_PAIRS = 30_000
# Records whose answers are counted for the mean.
ANSWERED = 500
# Records whose pictures are read, to see how long that takes.
READ = 6
# How often the scored records are answered: before, after, with blank and with other pictures; of
# records without pictures the first two.
TIMES_SCORED, TEXTS_SCORED = 4, 2


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
        picture_s: seconds that reading one picture takes.
        note: what of it is an estimate.
    """

    splits: Splits
    train: Lengths
    val: list[Lengths]
    scores: Scores | None
    base: Base
    picture_s: float = 0.0
    note: str = ""


def measure_data(task: Task, base: Base, side: int | None = None, note: str = "") -> PlannedData:
    """How long the rows of all splits are, and how long a picture takes to be read.

    Args:
        task: settled: its splits are what the model can read, and what it scores is chosen.
        base: counts tokens and answers; its model is not asked.
        side: pixels of a side of the pictures that the model sees; None: it sees none, or they
            cost nothing.
        note: what of the counts is an estimate.
    """
    splits, picture_s = task.splits, _picture_s(task.splits.train, side) if side else 0.0
    parts = splits.val.sources if isinstance(splits.val, Joined) else [splits.val]
    splits = replace(splits, train=undrawn(splits.train), val=undrawn(splits.val))
    val = [_lengths(undrawn(part), base) for part in parts if len(part)]
    scores = _scores(task, base)
    count = len(splits.train)
    if count > MOST_PAIRS and isinstance(splits.train[0], Pair):
        note += f"Lengths are those of {MOST_PAIRS:,} of {count:,} records. "
    train = _lengths(splits.train, base)
    return PlannedData(splits, train, val, scores, base, picture_s, note)


def _picture_s(samples: Sequence[Any], side: int) -> float:
    """Seconds of a picture: the median of a few, read and made as large as the model sees them."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    times: list[float] = []
    for number in evenly(range(len(samples)), READ):
        begun = perf_counter()
        try:
            # Generated pictures are drawn when the sample is asked for.
            images = samples[number].images
            image_pixels(images, processor)
        except UserError:
            # A picture that cannot be read: training tells of it, or leaves it out.
            continue
        times += [(perf_counter() - begun) / len(images)] if images else []
    return median(times) if times else 0.0


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

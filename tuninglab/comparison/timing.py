"""Time of a training step in several configurations, taken in turns in one process."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tuninglab.comparison.variants import Variant
from tuninglab.comparison.workloads import Bench
from tuninglab.console import say

# Every seed has its own LoRA weights and its own data, the same in all rows.
SEEDS = (0, 1)
# Steps go over these again and again, so that the loss can fall although tokens are random.
BATCHES = 2


@dataclass
class Measured:
    """What the steps of one row came to.

    Args:
        warm_up_s: seconds of each seed's first step, which no ratio counts.
        times_s: seconds of the steps after it, in the order of the rounds.
        losses: by seed, the loss of every step, the first included.
    """

    warm_up_s: list[float] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    losses: dict[int, list[float]] = field(default_factory=dict)


def take_turns(
    variants: Sequence[Variant], bench: Bench, rounds: int, seeds: Sequence[int] = SEEDS
) -> list[Measured]:
    """Train each variant for a warm-up step and `rounds` more, a step each in turn, for each seed.

    What else the machine does at a time falls on all rows alike. The order of a round is that of
    the last one reversed, so that no row always comes after the same other.
    """
    measured = [Measured() for _ in variants]
    for seed in seeds:
        # Built and dropped in a call of its own, so that no two sets of models exist at a time.
        _train_in_turns(list(zip(measured, variants, strict=True)), bench, rounds, seed)
    return measured


def _train_in_turns(
    rows: Sequence[tuple[Measured, Variant]], bench: Bench, rounds: int, seed: int
) -> None:
    pairs = [(row, variant.build(bench, seed)) for row, variant in rows]
    batches = [bench.batch(1000 * seed + number) for number in range(BATCHES)]
    for turn in range(rounds + 1):
        for row, training in pairs[:: -1 if turn % 2 else 1]:
            began = time.perf_counter()
            # The loss is there when the whole step is done.
            row.losses.setdefault(seed, []).append(training.step(batches[turn % BATCHES]))
            (row.times_s if turn else row.warm_up_s).append(time.perf_counter() - began)
        say(f"  seed {seed}: {f'round {turn} of {rounds}' if turn else 'warm-up'}")


def ratio_of(times_s: Sequence[float], plain_s: Sequence[float]) -> tuple[float, float]:
    """Time over that of the plain row: median of the ratios of each round, and of the lowest."""
    rounds = [one / other for one, other in zip(times_s, plain_s, strict=True)]
    return statistics.median(rounds), min(times_s) / min(plain_s)

"""Loaders of a run's samples, in the order that the seed gives and each process its share."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from tuninglab.config import TrainingConfig
from tuninglab.data.loading import make_loader
from tuninglab.data.mixture import Joined
from tuninglab.data.orders import MixedOrder, Order, WindowOrder
from tuninglab.data.reading.lengths import fit, lengths_of
from tuninglab.data.reading.store import Chosen, table_of
from tuninglab.data.sampler import StepSampler
from tuninglab.data.sources import Splits
from tuninglab.recipes.recipe import Base


def make_base_loader(
    samples: Sequence[Any],
    base: Base,
    config: TrainingConfig,
    accelerator: Accelerator,
    batch_size: int,
    accumulation: int = 1,
    shuffle: bool = False,
) -> DataLoader:
    """A loader of samples as the inputs of the base.

    Args:
        samples: of a split, perhaps lazy.
        base: makes rows of them, and batches of rows.
        config: seed and worker processes.
        accelerator: which process this is.
        batch_size: rows per process and forward pass.
        accumulation: forward passes a step.
        shuffle: whether each epoch has an order of its own.
    """
    sampler = StepSampler(
        len(samples),
        batch_size,
        accumulation,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        seed=config.seed,
        shuffle=shuffle,
        order=order_of(samples) if shuffle else None,
    )
    return make_loader(base.rows(samples), base.collator, sampler, config.workers)


def readable(config: TrainingConfig, splits: Splits, base: Base) -> Splits:
    """The samples that the model can read.

    Raises:
        DataError: samples are longer than that, or than `max_tokens`.
    """
    longest = min((n for n in (config.max_tokens, base.longest_tokens) if n), default=None)
    # The embedded samples are short; reading them all would draw every picture.
    if longest and config.data is not None:
        lengths = partial(lengths_of, count=base.tokens, key=base.tokens_key)
        splits = fit(splits, lengths, longest, config.skip_bad_records)
    else:
        # A prompt that does not fit the dialogues is told before there is a run.
        base.tokens([splits.train[0]])
    return splits


def open_loaders(
    config: TrainingConfig, splits: Splits, base: Base, accelerator: Accelerator
) -> tuple[DataLoader, dict[str, DataLoader]]:
    """Loaders of the samples for training, and for validation by the name of each set."""
    size: Any = config.batch_size  # decided by now
    accumulation = config.gradient_accumulation_steps
    run = (base, config, accelerator, size)
    train_loader = make_base_loader(splits.train, *run, accumulation, shuffle=True)
    val = splits.val
    parts = zip(val.names, val.sources, strict=True) if isinstance(val, Joined) else [("", val)]
    val_loaders = {name: make_base_loader(part, *run) for name, part in parts if len(part)}
    return train_loader, val_loaders


def order_of(samples: Sequence[Any]) -> Order | None:
    """The order that suits samples, where a plain permutation does not.

    Those of several sets come in their shares; those of files that are read in groups of rows, one
    window of groups after another.
    """
    if isinstance(samples, Joined):
        return MixedOrder(list(map(len, samples.sources)), samples.counts or [])
    table = table_of(samples)
    if table is None or not len(table.groups) or table.groups.max() < 0:
        return None
    stored: Any = samples.source if isinstance(samples, Chosen) else samples
    return WindowOrder(table.row_groups(), stored.window)

"""Loaders of a run's samples, in the order that the seed gives and each process its share."""

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from tuninglab.config import TrainingConfig
from tuninglab.data.loading import make_loader
from tuninglab.data.reading.splits import fit
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
        splits = fit(splits, base.tokens, longest, config.skip_bad_records)
    else:
        # A prompt that does not fit the dialogues is told before there is a run.
        base.tokens(splits.train[0])
    return splits


def open_loaders(
    config: TrainingConfig, splits: Splits, base: Base, accelerator: Accelerator
) -> tuple[DataLoader, DataLoader | None]:
    """Loaders of the samples for training and for validation (None without these)."""
    size: Any = config.batch_size  # decided by now
    accumulation = config.gradient_accumulation_steps
    run = (base, config, accelerator, size)
    train_loader = make_base_loader(splits.train, *run, accumulation, shuffle=True)
    val_loader = make_base_loader(splits.val, *run) if len(splits.val) else None
    return train_loader, val_loader

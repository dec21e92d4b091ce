"""Loaders of a run's samples, in the order that the seed gives and each process its share."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from tuninglab.config import TrainingConfig
from tuninglab.console import Choices
from tuninglab.data.loading import make_loader
from tuninglab.data.mixture import Joined
from tuninglab.data.orders import FileOrder, Order, Permutation
from tuninglab.data.reading.lengths import fit, lengths_of
from tuninglab.data.sampler import StepSampler
from tuninglab.data.sources import Splits
from tuninglab.recipes.recipe import Base
from tuninglab.recipes.row_orders import packing, train_order, val_order


def make_base_loader(
    samples: Sequence[Any],
    base: Base,
    config: TrainingConfig,
    accelerator: Accelerator,
    batch_size: int,
    accumulation: int = 1,
    order: Order | None = None,
) -> DataLoader:
    """A loader of samples as the inputs of the base.

    Args:
        samples: of a split, perhaps lazy.
        base: makes rows of them, and batches of rows.
        config: seed and worker processes.
        accelerator: which process this is.
        batch_size: rows per process and forward pass.
        accumulation: forward passes a step.
        order: of the rows; None: as they stand.
    """
    order = FileOrder(len(samples)) if order is None else order
    sampler = StepSampler(
        len(samples),
        batch_size,
        accumulation,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        seed=config.seed,
        shuffle=not isinstance(order, FileOrder),
        # These two the sampler knows without being told, and checkpoints by a word of their own.
        order=None if isinstance(order, (Permutation, FileOrder)) else order,
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
    config: TrainingConfig,
    splits: Splits,
    base: Base,
    accelerator: Accelerator,
    choices: Choices,
) -> tuple[DataLoader, dict[str, DataLoader]]:
    """Loaders of the samples for training, and for validation by the name of each set.

    Raises:
        UserError: samples shall be packed, but the model cannot read them so.
    """
    size: Any = config.batch_size  # decided by now
    train, val = splits.train, splits.val
    order = train_order(train, config, base, accelerator.num_processes, choices)
    made = packing(base) if config.pack_tokens else base
    run = (made, config, accelerator, size)
    accumulation = config.gradient_accumulation_steps
    train_loader = make_base_loader(train, *run, accumulation, order)
    parts = zip(val.names, val.sources, strict=True) if isinstance(val, Joined) else [("", val)]
    val_loaders = {
        name: make_base_loader(part, *run, order=val_order(part, config, base))
        for name, part in parts
        if len(part)
    }
    return train_loader, val_loaders

"""Loaders of a run's samples, in the order that the seed gives and each process its share."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from torch.utils.data import DataLoader

from tuninglab.config import TrainingConfig
from tuninglab.console import Choices
from tuninglab.data.loading import make_loader
from tuninglab.data.orders import FileOrder, Order, Permutation, Rows
from tuninglab.data.packing import GroupedOrder, PackedCollator, PackedDataset, PackedOrder
from tuninglab.data.reading.splits import fit
from tuninglab.data.sampler import StepSampler
from tuninglab.data.sources import Splits
from tuninglab.errors import UserError
from tuninglab.models.packed_trial import packing_problem
from tuninglab.progress import working
from tuninglab.recipes.recipe import Base


def make_base_loader(
    samples: Sequence[Any],
    base: Base,
    config: TrainingConfig,
    accelerator: Accelerator,
    batch_size: int,
    accumulation: int = 1,
    shuffle: bool = False,
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
        shuffle: whether each epoch has an order of its own.
        order: another one; of bins, where the base makes rows of these.
    """
    sampler = StepSampler(
        len(samples),
        batch_size,
        accumulation,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        seed=config.seed,
        shuffle=shuffle,
        order=order,
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
    return splits


class Lengths(NamedTuple):
    """Of each sample (samples,): its tokens and its pictures."""

    tokens: Rows
    pictures: Rows


def lengths_of(samples: Sequence[Any], base: Base) -> Lengths:
    """The tokens and pictures of samples, each of which is read once."""
    counts = np.empty((2, len(samples)), np.int64)
    with working("counting tokens", len(samples)) as note:
        for number, sample in enumerate(samples):
            counts[:, number] = base.tokens(sample), len(sample.images)
            note(number + 1)
    return Lengths(*counts)


def open_loaders(
    config: TrainingConfig,
    splits: Splits,
    base: Base,
    accelerator: Accelerator,
    choices: Choices,
) -> tuple[DataLoader, DataLoader | None]:
    """Loaders of the samples for training and for validation (None without these).

    Raises:
        UserError: samples shall be packed, but the model cannot read them so.
    """
    size: Any = config.batch_size  # decided by now
    accumulation = config.gradient_accumulation_steps
    train_order = val_order = None
    if config.pack_tokens:
        base = packing(base)
        train_order = _packed(Permutation(len(splits.train)), splits.train, config, base)
        val_order = _packed(FileOrder(len(splits.val)), splits.val, config, base)
        _tell_packed(train_order, config, choices)
    elif config.group_by_length:
        step = size * accumulation * accelerator.num_processes
        lengths = lengths_of(splits.train, base).tokens
        train_order = GroupedOrder(Permutation(len(splits.train)), lengths, step)
        _tell_grouped(train_order, config, choices)
    run = (base, config, accelerator, size)
    train_loader = make_base_loader(
        splits.train, *run, accumulation, shuffle=True, order=train_order
    )
    val_loader = make_base_loader(splits.val, *run, order=val_order) if len(splits.val) else None
    return train_loader, val_loader


def packing(base: Base) -> Base:
    """The base, which makes rows and batches of bins.

    Raises:
        UserError: its model cannot read several samples in a row.
    """
    # These tell samples apart in a batch of one row alone (transformers 5.23).
    one_row = base.model.config.text_config._attn_implementation.startswith("flash")
    if problem := packing_problem(base.model.eval(), one_row):
        raise UserError(
            f"--pack_tokens: {problem}. Leave it out; --group_by_length saves padding with any "
            "model."
        )
    collator = PackedCollator(base.collator, base.model.config.image_token_id, one_row)  # pyright: ignore
    rows = base.rows
    return replace(base, rows=lambda samples: PackedDataset(rows(samples)), collator=collator)


def fill_of(loader: DataLoader) -> dict[str, float]:
    """How full the bins of the first epoch are, as the report has it; of rows, nothing."""
    sampler: Any = loader.batch_sampler
    order = sampler.taken
    if not isinstance(order, PackedOrder):
        return {}
    return {"fill": round(order.fill(order.rows(sampler.seed, 0)), 4)}


def _packed(order: Order, samples: Sequence[Any], config: TrainingConfig, base: Base) -> Any:
    limits: Any = (config.pack_tokens, config.pack_images)
    return PackedOrder(order, *lengths_of(samples, base), *limits)


def _tell_packed(order: PackedOrder, config: TrainingConfig, choices: Choices) -> None:
    bins = order.rows(config.seed, 0)
    records, longer = len(order.lengths), int((order.lengths > order.tokens).sum())
    alone = f"; {longer:,} records are longer and have one each" if longer else ""
    choices.add(
        "packing",
        f"{records:,} records in {len(bins):,} rows, {order.fill(bins):.1%} full{alone}",
        f"--pack_tokens {order.tokens:,}; --batch_size counts these rows",
    )


def _tell_grouped(order: GroupedOrder, config: TrainingConfig, choices: Choices) -> None:
    size: Any = config.batch_size
    plain, grouped = (
        padding_share(order.lengths[made.rows(config.seed, 0)], size)
        for made in (order.order, order)
    )
    value = f"{grouped:.1%} of what the model reads; {plain:.1%} without"
    choices.add("padding", value, "--group_by_length")


def padding_share(lengths: Rows, size: int) -> float:
    """The share of padding in batches of `size` rows with these lengths, in their order."""
    longest = np.maximum.reduceat(lengths, np.arange(0, len(lengths), size))
    counts = np.full(len(longest), size)
    counts[-1] = len(lengths) - size * (len(longest) - 1)
    return 1 - float(lengths.sum()) / float((longest * counts).sum())

"""In which order a run takes its rows: in shares of several sets, by length, several in a row."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from tuninglab.config import TrainingConfig
from tuninglab.console import Choices
from tuninglab.data.mixture import Joined
from tuninglab.data.orders import FileOrder, MixedOrder, Order, Permutation, Rows, WindowOrder
from tuninglab.data.packing import GroupedOrder, PackedCollator, PackedDataset, PackedOrder
from tuninglab.data.reading.lengths import lengths_of
from tuninglab.data.reading.store import Chosen, table_of
from tuninglab.errors import UserError
from tuninglab.models.packed_trial import packing_problem
from tuninglab.recipes.recipe import Base


def order_of(samples: Sequence[Any]) -> Order:
    """The order of an epoch that suits samples: a permutation of them, or one by parts.

    Those of several sets come in their shares; those of files that are read in groups of rows, one
    window of groups after another.
    """
    if isinstance(samples, Joined) and samples.counts is not None:
        return MixedOrder(list(map(len, samples.sources)), samples.counts)
    table = table_of(samples)
    if table is None or not len(table.groups) or table.groups.max() < 0:
        return Permutation(len(samples))
    stored: Any = samples.source if isinstance(samples, Chosen) else samples
    return WindowOrder(table.row_groups(), stored.window)


def train_order(
    samples: Sequence[Any], config: TrainingConfig, base: Base, processes: int, choices: Choices
) -> Order:
    """The order of the training rows, with what was chosen said."""
    order = order_of(samples)
    if config.pack_tokens:
        order = packed(order, samples, config, base)
        _tell_packed(order, config, choices)
    elif config.group_by_length:
        size: Any = config.batch_size  # decided by now
        step = size * config.gradient_accumulation_steps * processes
        tokens = lengths_of(samples, base.tokens, base.tokens_key)
        order = GroupedOrder(order, tokens.astype(np.int64), step)
        _tell_grouped(order, config, choices)
    return order


def val_order(samples: Sequence[Any], config: TrainingConfig, base: Base) -> Order:
    """The order of validation rows: that of the file."""
    order = FileOrder(len(samples))
    return packed(order, samples, config, base) if config.pack_tokens else order


def packed(order: Order, samples: Sequence[Any], config: TrainingConfig, base: Base) -> PackedOrder:
    """The rows of an order in bins of at most --pack_tokens and --pack_images."""
    tokens = lengths_of(samples, base.tokens, base.tokens_key).astype(np.int64)
    limits: Any = (config.pack_tokens, config.pack_images)
    return PackedOrder(order, tokens, pictures_of(samples), *limits)


def pictures_of(samples: Sequence[Any]) -> Rows:
    """How many pictures each sample has (samples,)."""
    if isinstance(samples, Joined):
        return np.concatenate([pictures_of(source) for source in samples.sources])
    table = table_of(samples)
    if table is not None:
        return table.counts
    return np.array([len(sample.images) for sample in samples], np.int64)


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

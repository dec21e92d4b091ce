"""The orders in which an epoch takes the rows of its data, each a function of (seed, epoch)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class Bins(Sequence[tuple[int, ...]]):
    """Rows taken together, a bin of them at a time: two arrays, however many rows there are.

    Args:
        rows: of all bins, one bin after the other.
        starts: where each bin starts in `rows`, and at last where they end.
    """

    def __init__(self, rows: Rows, starts: Rows):
        self.rows = rows
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> tuple[int, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> "list[tuple[int, ...]]": ...
    def __getitem__(self, index: Any) -> Any:
        """The rows of bin `index`, or of each bin of a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        # An index beyond the end ends a loop over a sequence.
        number = range(len(self))[index]
        return tuple(self.rows[self.starts[number] : self.starts[number + 1]].tolist())


class Order(Protocol):
    """What a `StepSampler` asks for the entries of an epoch: rows, or bins of rows.

    Small and pickled with ease: nothing of an epoch is kept, all is made anew from two numbers.
    """

    @property
    def said(self) -> str:
        """What a position in the order depends on beside seed and rows; a resumed run compares."""
        ...

    def count(self, seed: int, epoch: int) -> int:
        """The entries of an epoch."""
        ...

    def rows(self, seed: int, epoch: int) -> Rows | Bins:
        """The entries of an epoch in the order of training."""
        ...


# What runs of earlier versions went by, whose checkpoints say nothing of it.
EACH_ONCE = "each row once"


@dataclass(frozen=True)
class FileOrder:
    """All rows as they stand in the data."""

    length: int
    said: str = EACH_ONCE

    def count(self, seed: int, epoch: int) -> int:
        """All rows."""
        return self.length

    def rows(self, seed: int, epoch: int) -> Rows:
        """0, 1, 2, ..., in every epoch."""
        return np.arange(self.length)


@dataclass(frozen=True)
class Permutation:
    """All rows in an order of the epoch's own."""

    length: int
    said: str = EACH_ONCE

    def count(self, seed: int, epoch: int) -> int:
        """All rows."""
        return self.length

    def rows(self, seed: int, epoch: int) -> Rows:
        """A permutation of all rows."""
        # numpy mixes the pair: seed 0 in epoch 1 and seed 1 in epoch 0 have nothing in common.
        return np.random.default_rng((seed, epoch)).permutation(self.length)


class WindowOrder:
    """All rows, those that are read together near each other: for files read in groups of rows.

    The groups are permuted, and then the rows within each `window` of them. Whoever keeps the
    groups of a window in memory reads every group once an epoch.

    Args:
        groups: (rows,) the group of each row, such as its row group in a parquet file.
        window: groups whose rows are mixed.

    Raises:
        ValueError: a window of no groups.
    """

    def __init__(self, groups: NDArray[Any], window: int = 40):
        if window < 1:
            raise ValueError(f"window is {window}; expected at least 1 group")
        ordered = bool((np.diff(groups) >= 0).all())
        # Rows of a file stand in its order: then a group is a range, and needs no list.
        self.by_group = None if ordered else np.argsort(groups, kind="stable")
        laid = groups if self.by_group is None else groups[self.by_group]
        cuts = np.flatnonzero(np.diff(laid)) + 1
        self.starts: Rows = np.array([0, *cuts, len(laid)], np.int64)
        self.window = window
        self.said = f"windows of {window} groups {digest_of(groups)}"

    def count(self, seed: int, epoch: int) -> int:
        """All rows."""
        return int(self.starts[-1])

    def rows(self, seed: int, epoch: int) -> Rows:
        """A permutation of all rows."""
        generator = np.random.default_rng((seed, epoch))
        groups = generator.permutation(len(self.starts) - 1)
        order, done = np.empty(self.count(seed, epoch), np.int64), 0
        for first in range(0, len(groups), self.window):
            taken = groups[first : first + self.window]
            ranges = [np.arange(*self.starts[g : g + 2].tolist()) for g in taken]
            mixed = generator.permutation(np.concatenate(ranges))
            order[done : done + len(mixed)] = mixed
            done += len(mixed)
        return order if self.by_group is None else self.by_group[order]


class MixedOrder:
    """A share of each of several sources, which are laid end to end.

    The k-th row that a source gives, over all epochs, is entry k of its own endless permutation:
    one pass after another, each in an order of its own. So within a source no row is seen twice
    more often than another, and a small one repeats evenly.

    Args:
        sizes: rows of each source.
        counts: rows of each source in an epoch; 0 leaves it out.

    Raises:
        ValueError: sizes and counts do not belong together, no row is wanted, or one of nothing.
    """

    def __init__(self, sizes: Sequence[int], counts: Sequence[int]):
        pairs = list(zip(sizes, counts, strict=False))
        wrong = any(count < 0 or (count and size < 1) for size, count in pairs)
        if wrong or len(sizes) != len(counts) or not any(counts):
            raise ValueError(f"counts are {counts} of sources with {sizes} rows")
        self.sizes, self.counts = tuple(sizes), tuple(counts)
        self.said = f"{self.counts} rows an epoch of sources with {self.sizes}"

    def count(self, seed: int, epoch: int) -> int:
        """The rows of an epoch."""
        return sum(self.counts)

    def rows(self, seed: int, epoch: int) -> Rows:
        """Rows of all sources mixed, a row several times where its source is small."""
        parts, first = [np.empty(0, np.int64)], 0
        for number, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            done, end = epoch * count, (epoch + 1) * count
            while done < end:
                passes, place = divmod(done, size)
                taken = drawn(seed, number, passes).permutation(size)[place : place + end - done]
                parts.append(first + taken)
                done += len(taken)
            first += size
        return np.random.default_rng((seed, epoch)).permutation(np.concatenate(parts))


def drawn(seed: int, *key: int) -> np.random.Generator:
    """A generator of its own for a seed and some numbers."""
    # A spawn key and no longer tuple: numpy takes (1, 2) and (1, 2, 0) for the same seed.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def digest_of(*arrays: NDArray[Any]) -> str:
    """A few letters that tell arrays of numbers from others, for `Order.said`."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array, np.int64).data)
    return total.hexdigest()[:12]

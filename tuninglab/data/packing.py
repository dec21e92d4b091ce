"""Rows of like lengths together, or several in one: orders, rows and batches of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from tuninglab.data.batches import FEATURES, Batch, Collator, check_frames, padded
from tuninglab.data.orders import Bins, Order, Rows, digest_of, drawn
from tuninglab.data.prompt import IGNORED

# Rows that are sorted or packed together: enough for close fits, few of an epoch.
WINDOW = 1000
# Steps whose rows are sorted together: more make lengths more alike, and the order less free.
WINDOW_STEPS = 50


class GroupedOrder:
    """The rows of another order, so that those of a step have like lengths.

    A window of steps at a time is sorted by length and cut into steps, which are then shuffled. So
    micro-batches hold rows of like lengths, and which step has which rows does not depend on
    processes and accumulation.

    Args:
        order: of rows.
        lengths: (rows of the data,) tokens of each.
        rows_per_step: of all processes.
    """

    def __init__(self, order: Order, lengths: NDArray[Any], rows_per_step: int):
        self.order = order
        self.lengths = lengths
        self.rows_per_step = rows_per_step
        self.said = f"{order.said}, by {digest_of(lengths)} in steps of {rows_per_step}"

    def count(self, seed: int, epoch: int) -> int:
        """As many as the other order has."""
        return self.order.count(seed, epoch)

    def rows(self, seed: int, epoch: int) -> Rows:
        """The rows of the other order, each as often as there."""
        rows = np.array(self.order.rows(seed, epoch))
        size, window = self.rows_per_step, self.rows_per_step * WINDOW_STEPS
        # A last step of fewer rows stays the last, and its rows any: no other step would be whole.
        whole = len(rows) - len(rows) % size
        for number, first in enumerate(range(0, whole, window)):
            part = rows[first : min(first + window, whole)]
            by_length = part[np.argsort(self.lengths[part], kind="stable")].reshape(-1, size)
            part[:] = drawn(seed, epoch, number).permutation(by_length).reshape(-1)
        return rows


class PackedOrder:
    """The rows of another order in bins, each of which becomes one row.

    A window of rows at a time is packed by first-fit decreasing, and its bins are shuffled. A row
    that is larger than a bin has one of its own.

    Args:
        order: of rows.
        lengths: (rows of the data,) tokens of each.
        pictures: (rows of the data,) pictures of each.
        tokens: most of a bin.
        images: most pictures of a bin; None: any number.
    """

    def __init__(
        self,
        order: Order,
        lengths: NDArray[Any],
        pictures: NDArray[Any],
        tokens: int,
        images: int | None = None,
    ):
        self.order = order
        self.lengths, self.pictures = lengths, pictures
        self.tokens, self.images = tokens, images
        bins = f"bins of {tokens} tokens and {images or 'any'} pictures"
        self.said = f"{order.said}, {bins}, {digest_of(lengths, pictures)}"

    def count(self, seed: int, epoch: int) -> int:
        """The bins of an epoch, which are made to be counted."""
        return len(self.rows(seed, epoch))

    def rows(self, seed: int, epoch: int) -> Bins:
        """Bins of the rows of the other order, each row as often as there."""
        rows: Any = self.order.rows(seed, epoch)
        laid, sizes = [np.empty(0, np.int64)], [np.zeros(1, np.int64)]
        images = np.iinfo(np.int64).max if self.images is None else self.images
        for number, first in enumerate(range(0, len(rows), WINDOW)):
            part = rows[first : first + WINDOW]
            limits = (self.tokens, images)
            place = first_fit(self.lengths[part], self.pictures[part], *limits)
            place = drawn(seed, epoch, number).permutation(place.max() + 1)[place]
            # Within a bin, the first stays the first.
            laid.append(part[np.argsort(place, kind="stable")])
            sizes.append(np.bincount(place))
        return Bins(np.concatenate(laid), np.concatenate(sizes).cumsum())

    def fill(self, bins: Bins) -> float:
        """The tokens of bins, of those they have room for.

        Of a row larger than a bin counts what one has room for.
        """
        sums = np.add.reduceat(self.lengths[bins.rows], bins.starts[:-1])
        return float(np.minimum(sums, self.tokens).sum()) / (len(bins) * self.tokens)


def first_fit(lengths: NDArray[Any], pictures: NDArray[Any], tokens: int, images: int) -> Rows:
    """The bin of each row (rows,), counted from 0, by first-fit decreasing.

    The longest row comes first, each into the first bin that has room for its tokens and pictures.
    """
    place, used = np.empty(len(lengths), np.int64), 0
    free, free_images = np.full(len(lengths), tokens), np.full(len(lengths), images)
    for row in np.argsort(-lengths, kind="stable"):
        room = (free[:used] >= lengths[row]) & (free_images[:used] >= pictures[row])
        # The first that has room; else a new one, also for a row that no bin has room for.
        number = int(room.argmax()) if room.any() else used
        used = max(used, number + 1)
        place[row] = number
        free[number] -= lengths[row]
        free_images[number] -= pictures[row]
    return place


class PackedDataset(Dataset[list[dict[str, Any]]]):
    """Bins of rows of a data set, by their numbers there.

    Args:
        rows: row `index` is a dict, as of a `SampleDataset`.
    """

    def __init__(self, rows: Any):
        self.rows = rows

    def __getitem__(self, index: Any) -> list[dict[str, Any]]:
        """The rows of a bin, a tuple of numbers; of a number alone, a bin of that row.

        Raises:
            UserError: as the data set of rows does.
        """
        # A MaskedRow, too, which must reach the data set as it is.
        return [self.rows[number] for number in (index if isinstance(index, tuple) else (index,))]


@dataclass
class PackedCollator:
    """Bins to a batch, each a row of its documents one after the other.

    Args:
        collator: of rows.
        image_token_id: of the mark of a picture.
        one_row: all bins in one row: for attention functions that tell documents only there.
    """

    collator: Collator
    image_token_id: int
    one_row: bool = False

    def __call__(self, bins: Sequence[list[dict[str, Any]]]) -> Batch:
        """A batch of input_ids, labels and documents (B, T), and the pictures of `Collator`.

        Labels are IGNORED first in each document, or the one before would predict it; documents
        count from 0 in each row, and are -1 at padding. What is counted is documents.

        Raises:
            ValueError: pictures of a bin differ in frames.
        """
        rows = [[_unpredicted(row) for row in of_bin] for of_bin in bins]
        documents = [row for of_bin in rows for row in of_bin]
        rows = [documents] if self.one_row else rows
        inputs = self.collator([self._joined(of_bin) for of_bin in rows]).inputs
        numbers = [[n for n, row in enumerate(of) for _ in row["input_ids"]] for of in rows]
        inputs["documents"] = padded(numbers, -1)
        del inputs["attention_mask"]
        return Batch.of(documents, inputs)

    def _joined(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """One row of several; its pictures are those that have a mark, in their order."""
        joined: dict[str, Any] = {"sample_id": ", ".join(row["sample_id"] for row in rows)}
        for name in ("input_ids", "labels"):
            joined[name] = [value for row in rows for value in row[name]]
        name = next((name for name in FEATURES if name in rows[0]), "pixel_values")
        if name == "pixel_values":
            check_frames(rows)
        # A row without pictures has none, or blank features, which no mark stands for.
        marks = [row["input_ids"].count(self.image_token_id) for row in rows]
        pairs = zip(rows, marks, strict=True)
        seen = [row[name][:count] for row, count in pairs if count and row[name] is not None]
        joined[name] = torch.cat(seen) if seen else rows[0][name]
        return joined


def _unpredicted(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"labels": [IGNORED, *row["labels"][1:]]}

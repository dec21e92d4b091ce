"""Rows that are decoded together, a token each at a time; they come and go as they please."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tuninglab.models.decoding import Decoder
from tuninglab.serving.rows import Row


class Batch:
    """Rows with one cache, padded on the left to the longest.

    Attributes:
        rows: B of them.
        cache: of the T tokens before the last one of each row.
        mask: (B, T), 0 at padding.
        media: (B, G, M, L, 2 * width) keys and values of pictures, filled up with zeros to the row
            with the most; None where no row has any.
    """

    def __init__(self):
        self.rows: list[Row] = []
        self.cache: Any = None
        self.mask: Any = None
        self.media: Tensor | None = None

    def join(self, row: Row, cache: Any) -> None:
        """Add a row that was read, with the cache (1, heads, T, head) of its prompt.

        To a batch with rows only where caches are plain: of all tokens, and nothing else.
        """
        length = cache.get_seq_length()
        mask = torch.ones(1, length, dtype=torch.long, device=row.chooser.device)
        if not self.rows:
            self.cache, self.mask, self.media = cache, mask, row.media
        else:
            own: Any = self.cache.layers
            for layer, new in zip(own, cache.layers, strict=True):
                layer.keys = _stacked(layer.keys, new.keys, 2)
                layer.values = _stacked(layer.values, new.values, 2)
            self.mask = _stacked(self.mask, mask, 1)
            self.media = self._with_media(row.media)
        self.rows.append(row)

    def step(self, model: Any, decoder: Decoder | None) -> Tensor:
        """Logits (B, V) of the token that follows the last one of each row.

        Args:
            model: a Flamingo.
            decoder: of its language model, or None.
        """
        device = self.mask.device
        ids = torch.tensor([[row.ids[-1]] for row in self.rows], device=device)  # (B, 1)
        sees = torch.tensor([[row.sees] for row in self.rows], device=device)
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        output = model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=self.mask.sum(-1, keepdim=True) - 1,
            past_key_values=self.cache,
            use_cache=True,
            media_key_values=self.media,
            text_time=sees,
            decoder=decoder,
        )
        self.cache = output.past_key_values
        return output.logits[:, -1]

    def leave(self, rows: Sequence[Row]) -> None:
        """Take rows out, and the padding that was there for them alone."""
        stay = [number for number, row in enumerate(self.rows) if row not in rows]
        if len(stay) == len(self.rows):
            return
        self.rows = [self.rows[number] for number in stay]
        if not stay:
            self.cache = self.mask = self.media = None
            return
        mask = self.mask[stay]
        start = int(mask.argmax(-1).min())
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[stay, :, start:], layer.values[stay, :, start:]
        self.mask = mask[:, start:]
        self.media = None if self.media is None else self.media[stay]

    def layers_of(self, row: Row) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (1, heads, T, head) of a row without its padding, as copies."""
        number = self.rows.index(row)
        own, start = slice(number, number + 1), int(self.mask[number].argmax())
        return [
            (layer.keys[own, :, start:].clone(), layer.values[own, :, start:].clone())
            for layer in self.cache.layers
        ]

    def _with_media(self, new: Tensor | None) -> Tensor | None:
        if self.media is None and new is None:
            return None
        # Zeros, which nothing sees: a row's numbers do not lead there.
        like = self.media if new is None else new
        assert like is not None
        shape = like.shape[1:2] + like.shape[3:]
        own = self.media
        if own is None:
            own = like.new_zeros(len(self.rows), shape[0], 0, *shape[1:])
        if new is None:
            new = like.new_zeros(1, shape[0], 0, *shape[1:])
        return _stacked(own, new, 2, at_end=True)


def _stacked(first: Tensor, second: Tensor, dim: int, at_end: bool = False) -> Tensor:
    """Two tensors, one after the other in dimension 0, the shorter filled up with zeros in `dim`.

    The zeros stand before what is there, or behind it.
    """
    shape = list(first.shape)
    shape[0] += len(second)
    shape[dim] = max(first.shape[dim], second.shape[dim])
    whole = first.new_zeros(shape)
    for part, rows in ((first, whole[: len(first)]), (second, whole[len(first) :])):
        length = part.shape[dim]
        start = 0 if at_end else shape[dim] - length
        rows.narrow(dim, start, length).copy_(part)
    return whole

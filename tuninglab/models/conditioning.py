"""Which image each text token sees, and how that reaches the gated blocks of a forward."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# Tokens of a block that attend to one image together: fewer leave fewer places empty, more copy
# the keys and values of an image less often.
BLOCK_TOKENS = (8, 64)


def count_text_time(
    input_ids: Tensor, image_token_id: int, media_mode: str, documents: Tensor | None = None
) -> Tensor:
    """(B, T) ids -> (B, T) number, from 1, of the image that each token sees; 0 is none.

    "previous" counts the marks up to and including the token. "next-v1" looks ahead: a mark sees
    its own image, text the image of the next mark, and text after the last mark none.

    With documents (B, T), the number of the document that each token is of, a token sees images of
    its own document alone; images are numbered through the row.
    """
    # From ids alone, without state, so that it holds for any slice of a growing text.
    marks = (input_ids == image_token_id).long()
    counted = marks.cumsum(-1)
    earlier: Tensor | int = 0  # marks of the row before the document, and up to its end
    last = marks.sum(-1, keepdim=True)
    if documents is not None:
        numbers = _begins(documents).long().cumsum(-1) - 1  # from 0, whatever they were called
        of_each = torch.zeros_like(marks).scatter_add(1, numbers, marks)
        last = of_each.cumsum(-1).gather(1, numbers)
        earlier = last - of_each.gather(1, numbers)
    if media_mode == "previous":
        return counted.masked_fill(counted <= earlier, 0)
    following = counted - marks + 1
    return following.masked_fill(following > last, 0)


def restarting_positions(documents: Tensor) -> Tensor:
    """(B, T) numbers of documents, each in one piece -> (B, T) positions that restart with each."""
    positions = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = positions.masked_fill(~_begins(documents), 0).cummax(-1).values
    return positions - starts


def _begins(documents: Tensor) -> Tensor:
    """(B, T) bool: where another document than before stands, the first token included."""
    before = documents.roll(1, -1)
    begins = documents != before
    begins[:, 0] = True
    return begins


def count_positions(attention_mask: Tensor) -> Tensor:
    """(B, T) mask -> (B, T) positions that do not count padding.

    Without them a left-padded row of GPT-2 (absolute positions) differs from the same row alone by
    3.0 in the logits.
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def sees_image(text_time: Tensor, image_count: int) -> Tensor:
    """(B, T) numbers from `count_text_time` -> (B, T, M) bool, which of M images a token sees."""
    # Numbers without an image (0, and those of missing images) match none.
    return text_time[..., None] == torch.arange(1, image_count + 1, device=text_time.device)


@dataclass(frozen=True)
class Conditioning:
    """What the gated blocks of one forward attend to: every token one image, or none.

    With several images in a row, the tokens that see one image are laid together in N blocks of
    S places, and each block attends to its image alone. That costs what the visible images cost
    (a masked product of all tokens with all images costs M times as much), needs no mask, and
    serves both media modes.

    Attributes:
        sees_image: (B, T, 1) bool; what the others come out with is set to 0.
        media: (B, M, L, D) latents, or None if `key_values` is given.
        key_values: (B, G, M, L, 2 * width) keys and values of the G gated blocks, or None.
        places: three tensors, or None each if M is 1: (N, S) the token of a place, counted through
            the batch; (B, T) the place of a token, counted through the blocks; (N,) the image of a
            block, counted through the batch.
    """

    sees_image: Tensor
    media: Tensor | None
    key_values: Tensor | None
    places: tuple[Tensor | None, ...]

    @classmethod
    def of(
        cls, text_time: Tensor, media: Tensor | None = None, key_values: Tensor | None = None
    ) -> "Conditioning | None":
        """From text_time (B, T) and the latents, or the keys and values made of them, if any."""
        source = media if key_values is None else key_values
        if source is None:
            return None
        visible = sees_image(text_time, source.shape[-3])
        places = (None, None, None) if visible.shape[-1] == 1 else _places(visible)
        return cls(visible.any(-1, keepdim=True), media, key_values, places)

    def tensors(self, number: int) -> tuple[Tensor | None, ...]:
        """Arguments of the gated block with that number (from 0), after the hidden states."""
        # A tuple and not an attribute access in the block: checkpoints keep only what they are
        # called with.
        key_values = None if self.key_values is None else self.key_values[:, number]
        return self.sees_image, self.media, key_values, *self.places


def _places(visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Visible (B, T, M) -> token_of_place (N, S), place_of_token (B, T), image_of_block (N,)."""
    rows, tokens, images = visible.shape
    fewest, most = BLOCK_TOKENS
    size = min(tokens, max(fewest, min(most, tokens // images)))
    blocks = (visible.sum(1).flatten() + size - 1) // size  # of each image of the batch
    ends = blocks.cumsum(0)
    # A compiled graph needs a number that does not depend on the text: each image leaves at most
    # one block partly empty. Reading the exact one waits for the device once a forward.
    bound = rows * (tokens // size + images)
    count = bound if torch.compiler.is_compiling() else max(1, int(ends[-1]))
    block_numbers = torch.arange(count, device=visible.device)
    image_of_block = torch.searchsorted(ends, block_numbers, right=True).clamp(max=len(ends) - 1)
    rank = (visible.cumsum(1) * visible).sum(-1) - 1  # among the tokens of the same image
    start = ((ends - blocks).view(rows, 1, images) * visible).sum(-1) * size
    # Tokens that see no image are written beyond the last place and read from any.
    place = torch.where(visible.any(-1), start + rank, count * size)
    token_of_place = place.new_zeros(count * size + 1)
    token_of_place[place.flatten()] = torch.arange(rows * tokens, device=visible.device)
    return token_of_place[:-1].view(count, size), place.clamp(max=count * size - 1), image_of_block


class _Current(threading.local):
    # One slot a thread, so that two threads can use one model. Not a ContextVar, because
    # torch.compile traces a thread-local whole but breaks on ContextVar.set (torch 2.13).
    conditioning: Conditioning | None = None


_current = _Current()


def current_conditioning() -> Conditioning | None:
    """What Flamingo layers that run in this thread attend to."""
    return _current.conditioning


@contextmanager
def conditioned_on(conditioning: Conditioning | None) -> Iterator[None]:
    """Within the block, Flamingo layers that run in this thread attend to `conditioning`."""
    before = _current.conditioning
    _current.conditioning = conditioning
    try:
        yield
    finally:
        _current.conditioning = before

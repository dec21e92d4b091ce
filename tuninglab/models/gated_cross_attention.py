"""Gated cross-attention: how the layers of a language model see images, and which ones."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tuninglab.models.perceiver import feed_forward, split_heads


def count_text_time(input_ids: Tensor, image_token_id: int, media_mode: str) -> Tensor:
    """(B, T) ids -> (B, T) number, from 1, of the image that each token sees; 0 is none.

    "previous" counts the marks up to and including the token. "next-v1" looks ahead: a mark sees
    its own image, text the image of the next mark, and text after the last mark none.
    """
    # From ids alone, without state, so that it holds for any slice of a growing text.
    marks = (input_ids == image_token_id).long()
    if media_mode == "previous":
        return marks.cumsum(-1)
    following = marks.cumsum(-1) - marks + 1
    return following.masked_fill(following > marks.sum(-1, keepdim=True), 0)


@dataclass(frozen=True)
class Conditioning:
    """What the gated blocks of one forward attend to.

    Attributes:
        mask: (B, 1, T, M * L) bool, latents a token attends to. Rows without any are all True,
            because attention backends differ on rows without a key; `sees_image` zeroes them.
        sees_image: (B, T, 1) bool.
        media: (B, M, L, D) latents, or None if `key_values` is given.
        key_values: (B, G, M, L, 2 * width) keys and values of the G gated blocks, or None.
    """

    mask: Tensor
    sees_image: Tensor
    media: Tensor | None
    key_values: Tensor | None

    @classmethod
    def of(
        cls, text_time: Tensor, media: Tensor | None = None, key_values: Tensor | None = None
    ) -> "Conditioning | None":
        """From text_time (B, T) and the latents, or the keys and values made of them, if any."""
        source = media if key_values is None else key_values
        if source is None:
            return None
        media_count, latent_count = source.shape[-3:-1]
        numbers = torch.arange(1, media_count + 1, device=text_time.device)
        # Numbers without an image (0, and those of missing images) match none.
        visible = text_time[..., None] == numbers
        sees_image = visible.any(-1, keepdim=True)
        mask = (visible | ~sees_image).repeat_interleave(latent_count, dim=-1)[:, None]
        return cls(mask, sees_image, media, key_values)

    def tensors(self, number: int) -> tuple[Tensor | None, ...]:
        """Arguments of the gated block with that number (from 0), after the hidden states."""
        # A tuple and not an attribute access in the block: checkpoints keep only what they are
        # called with.
        key_values = None if self.key_values is None else self.key_values[:, number]
        return self.mask, self.sees_image, self.media, key_values


class _Current(threading.local):
    # One slot a thread, so that two threads can use one model. Not a ContextVar, because
    # torch.compile traces a thread-local whole but breaks on ContextVar.set (torch 2.13).
    conditioning: Conditioning | None = None


_current = _Current()


@contextmanager
def conditioned_on(conditioning: Conditioning | None) -> Iterator[None]:
    """Within the block, Flamingo layers that run in this thread attend to `conditioning`."""
    before = _current.conditioning
    _current.conditioning = conditioning
    try:
        yield
    finally:
        _current.conditioning = before


class MaskedCrossAttention(nn.Module):
    """Text attends to the latents of the images that a mask lets it see."""

    def __init__(self, width: int, media_width: int, dim_head: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(media_width, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, width, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor,
        sees_image: Tensor,
        media: Tensor | None,
        key_values: Tensor | None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D), exactly 0 where a token sees no image; see `Conditioning`."""
        query = split_heads(self.to_q(self.norm(hidden_states)), self.heads)
        # In training from here, inside the block: sharding and checkpoints act on whole blocks.
        source = self.to_kv(media) if key_values is None else key_values
        key, value = source.to(query.dtype).flatten(1, 2).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(
            query, split_heads(key, self.heads), split_heads(value, self.heads), attn_mask=mask
        )
        # Zeroing before to_out equals zeroing after it, because to_out has no bias.
        return self.to_out(attended.transpose(1, 2).flatten(2) * sees_image)


class GatedCrossAttentionBlock(GradientCheckpointingLayer):
    """x + tanh(attn_gate) * attention, then x + tanh(ff_gate) * feed-forward; gates start at 0.

    It is checkpointed apart from the decoder layer and takes its conditioning as positional
    tensors: the recompute in backward runs after the conditioning has been withdrawn, on CUDA
    even in another thread, and both kinds of checkpoint keep positional tensors.
    """

    def __init__(self, width: int, media_width: int, dim_head: int, heads: int, ff_mult: int):
        super().__init__()
        self.attn = MaskedCrossAttention(width, media_width, dim_head, heads)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.ff = feed_forward(width, ff_mult)
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        sees_image: Tensor | None = None,
        media: Tensor | None = None,
        key_values: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D). Without images only the feed-forward acts, as in OpenFlamingo."""
        # The casts keep the stream's dtype where gates are float32 in a 16-bit model.
        if mask is not None:
            update = self.attn(hidden_states, mask, sees_image, media, key_values)
            hidden_states = hidden_states + (self.attn_gate.tanh() * update).to(hidden_states.dtype)
        update = self.ff(hidden_states)
        return hidden_states + (self.ff_gate.tanh() * update).to(hidden_states.dtype)


class FlamingoLayer(nn.Module):
    """A decoder layer of the language model, behind a gated block if it has one.

    Arguments and results are those of the decoder layer, untouched: architectures differ in
    names, in what is positional, and in returning a tensor or a tuple.

    Args:
        gated_cross_attn_layer: the block, or None.
        decoder_layer: the language model's own layer.
        number: which gated block of the model it is, from 0.
    """

    def __init__(
        self,
        gated_cross_attn_layer: GatedCrossAttentionBlock | None,
        decoder_layer: nn.Module,
        number: int = 0,
    ):
        super().__init__()
        self.gated_cross_attn_layer = gated_cross_attn_layer
        self.decoder_layer = decoder_layer
        self.number = number

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The gated block on (B, T, D), then the decoder layer with all it was given."""
        if self.gated_cross_attn_layer is not None:
            now = _current.conditioning
            # accelerate may have put this layer on another device than the perceiver.
            tensors = () if now is None else now.tensors(self.number)
            hidden_states = self.gated_cross_attn_layer(
                hidden_states, *(_like(tensor, hidden_states) for tensor in tensors)
            )
        return self.decoder_layer(hidden_states, *args, **kwargs)


def _like(tensor: Tensor | None, other: Tensor) -> Tensor | None:
    if tensor is None or not tensor.is_floating_point():
        return tensor if tensor is None else tensor.to(other.device)
    return tensor.to(other)

"""Gated cross-attention: how the layers of a language model look at images."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tuninglab.kernels.attention import attend
from tuninglab.models.conditioning import current_conditioning
from tuninglab.models.perceiver import feed_forward, split_heads


class MaskedCrossAttention(nn.Module):
    """Every text token attends to the latents of the one image that it sees."""

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
        sees_image: Tensor,
        media: Tensor | None,
        key_values: Tensor | None,
        token_of_place: Tensor | None = None,
        place_of_token: Tensor | None = None,
        image_of_block: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D), exactly 0 where a token sees no image; see `Conditioning`."""
        query = self.to_q(self.norm(hidden_states))
        # In training from here, inside the block: sharding and checkpoints act on whole blocks.
        source = self.to_kv(media) if key_values is None else key_values
        if token_of_place is None or image_of_block is None:
            attended = self._attend(query, source[:, 0])
        else:
            images = source.shape[1]
            chosen = source[image_of_block // images, image_of_block % images]
            laid = query.flatten(0, 1)[token_of_place]
            attended = self._attend(laid, chosen).flatten(0, 1)[place_of_token]
        # Zeroing before to_out equals zeroing after it, because to_out has no bias.
        return self.to_out(attended * sees_image)

    def _attend(self, query: Tensor, key_value: Tensor) -> Tensor:
        """Queries (N, S, width) of N images (N, L, 2 * width) -> (N, S, width)."""
        key, value = key_value.to(query.dtype).chunk(2, dim=-1)
        attended = attend(
            split_heads(query, self.heads),
            split_heads(key, self.heads),
            split_heads(value, self.heads),
        )
        return attended.transpose(1, 2).flatten(2)


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
        sees_image: Tensor | None = None,
        *seen: Tensor | None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D). Without images only the feed-forward acts, as in OpenFlamingo."""
        # The casts keep the stream's dtype where gates are float32 in a 16-bit model.
        if sees_image is not None:
            update = self.attn(hidden_states, sees_image, *seen)
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

    def key_values(self, media: Tensor) -> Tensor:
        """Latents (B, M, L, D) -> keys and values (B, M, L, 2 * width) of the block.

        Asked of the layer, because shards of weights come together in whole layers.
        """
        block: Any = self.gated_cross_attn_layer
        # Through the module and not its weight: an adapter may stand in its place.
        return block.attn.to_kv(media)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The gated block on (B, T, D), then the decoder layer with all it was given."""
        if self.gated_cross_attn_layer is not None:
            now = current_conditioning()
            # accelerate may have put this layer on another device than the perceiver.
            tensors = () if now is None else now.tensors(self.number)
            hidden_states = self.gated_cross_attn_layer(
                hidden_states, *(_like(tensor, hidden_states) for tensor in tensors)
            )
        return self.decoder_layer(hidden_states, *args, **kwargs)


def _like(tensor: Tensor | None, other: Tensor) -> Tensor | None:
    if tensor is None:
        return None
    return tensor.to(other if tensor.is_floating_point() else other.device)

"""The attention of transformers' layers, with the choice of `kernels/attention.py` in it."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tuninglab.kernels.attention import (
    MOST_SCORES,
    attend,
    autocast,
    bf16_cpu,
    takes_products,
)

NAME = "tuninglab_chosen"
# What some architectures ask of attention beyond a mask: it stays with transformers' sdpa.
BEYOND = ("softcap", "s_aux", "position_bias", "cache", "output_attentions")


def chosen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: (B, heads, T, D) -> (B, T, heads, D).

    Keys and values may have fewer heads, each for a group of queries' heads. `attention_mask` is
    what `sdpa_mask` made: boolean, true where a query may look; any other is left to sdpa.
    """
    masked = attention_mask is not None
    beyond = dropout or any(more.get(name) is not None for name in BEYOND)
    strange = masked and attention_mask.dtype != torch.bool
    query, key, value = autocast(query, key, value)
    if beyond or strange or not takes_products(query, key, value):
        how = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **how, **more)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    causal = bool(causal) and not masked and query.shape[2] > 1
    out = attend(query, key, value, attention_mask, causal, scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, chosen_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def choose_attention(model: Any, dtype: torch.dtype) -> tuple[str, str] | None:
    """Let the parts of a Flamingo take the attention that is fast here; says which, and why.

    Parts whose attention was set otherwise, or cannot be set, stay as they are; so do saved files.

    Args:
        model: a Flamingo, or a T5, whose position bias stays with torch's own; on its device.
        dtype: that it computes in.

    Returns:
        Value and reason of the choice; None where it stays with torch's own.
    """
    parts: list[Any] = [getattr(model, n, None) for n in ("lang_encoder", "vision_encoder")]
    if None in parts or model.device.type != "cpu" or dtype != torch.bfloat16 or not bf16_cpu():
        return None
    for part in parts:
        if part.config._attn_implementation == "sdpa" and part._can_set_attn_implementation():
            part.set_attn_implementation(NAME)
    side = int(MOST_SCORES**0.5)
    value = f"plain products in training, up to {side} x {side} tokens; else torch's own"
    return value, "the backward pass of torch's own in bf16 is slow on CPUs"

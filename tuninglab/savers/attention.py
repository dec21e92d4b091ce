"""Attention with a position bias that keeps no scores: the backward pass computes them again.

T5 adds a bias to its scores, for which torch has no attention on CPUs that is fast and small:
plain attention keeps (B, heads, T, T) probabilities, `sdpa` with the bias as its mask took longer
than plain attention here (2 cores, 256 tokens).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from tuninglab.kernels.compiled import call, has_kernels

NAME = "tuninglab_savers"
SCORES_AT_A_TIME = 2**19  # 1 MiB of 16-bit numbers


class _BiasedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        causal: bool,
        scaling: float,
    ) -> Tensor:
        batch, heads, queries, _ = query.shape
        total = torch.empty(batch, heads, queries)
        # Where it stands is where T5 wants it next: (B, T, heads, D).
        out = torch.empty(batch, queries, heads, value.shape[-1], dtype=query.dtype)
        laid = _laid(bias, query)
        for rows in _groups(query, key):
            scores = _product(query[rows], key[rows].transpose(2, 3))
            told = _told(scores, laid, mask, rows, causal, scaling)
            call("softmax", query.dtype, *told, total[rows], *scores.shape)
            out[rows] = _product(scores, value[rows]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, bias, mask, total)
        ctx.causal, ctx.scaling = causal, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, bias, mask, total = ctx.saved_tensors
        bias = _laid(bias, query)
        dq, dk, dv = (torch.empty_like(t) for t in (query, key, value))
        for rows in _groups(query, key):
            grad = grads[0][rows].transpose(1, 2)
            scores = _product(query[rows], key[rows].transpose(2, 3))
            ds = _product(grad, value[rows].transpose(2, 3))
            told = _told(scores, bias, mask, rows, ctx.causal, ctx.scaling)
            call("softmax_grad", query.dtype, *told, total[rows], ds, *scores.shape)
            dv[rows] = _product(scores.transpose(2, 3), grad)
            dq[rows] = _product(ds, key[rows])
            dk[rows] = _product(ds.transpose(2, 3), query[rows])
        return dq, dk, dv, None, None, None, None


def _laid(bias: Tensor | None, query: Tensor) -> Tensor | None:
    # All layers share one bias, laid out otherwise: kept as it is, a copy lives for one layer.
    return None if bias is None else bias[0].detach().to(query.dtype).contiguous()


def _groups(query: Tensor, key: Tensor) -> list[slice]:
    """Batch rows that are computed together: as many as have scores that fit a core's cache."""
    batch, heads, queries, _ = query.shape
    size = max(1, SCORES_AT_A_TIME // max(1, heads * queries * key.shape[2]))
    return [slice(start, start + size) for start in range(0, batch, size)]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """(B, heads, T, D) @ (B, heads, D, S) -> (B, heads, T, S)."""
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2])


def _told(
    scores: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    rows: slice,
    causal: bool,
    scale: float,
) -> tuple:
    """What the kernels take: scores, bias, mask and its steps, causal, scaling."""
    across = down = 0
    if mask is not None:
        across = mask.stride(0) if len(mask) > 1 else 0
        down = mask.stride(2) if mask.shape[2] > 1 else 0
        mask = mask[rows] if across else mask
    return scores, bias, mask, across, down, int(causal), scale


def saving_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: (B, heads, T, D) -> (B, T, heads, D).

    `attention_mask` is boolean, (B or 1, 1, T or 1, keys), true where a query may look.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # A bias that trains needs its gradient; one a batch row has another layout.
    bias = position_bias
    trained = bias is not None and (bias.requires_grad or len(bias) > 1)
    causal = attention_mask is None and query.shape[2] > 1 and bool(getattr(module, "is_causal", 0))
    # Generation is a query at a time; there is nothing to keep.
    if trained or dropout or not (query.requires_grad or key.requires_grad or value.requires_grad):
        return _plain(query, key, value, attention_mask, position_bias, causal, dropout, scaling)
    if not has_kernels(query) or query.dtype != key.dtype:
        return _plain(query, key, value, attention_mask, position_bias, causal, dropout, scaling)
    mask = None if attention_mask is None else attention_mask.contiguous()
    return _BiasedAttention.apply(query, key, value, position_bias, mask, causal, scaling), None


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    dropout: float,
    scaling: float,
) -> tuple[Tensor, None]:
    """The same through torch's own attention, which keeps what it needs."""
    if causal:
        queries, keys = query.shape[2], key.shape[2]
        ones = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        mask = ones.tril(keys - queries)[None, None]
    if bias is not None:
        bias = bias.to(query.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, saving_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)

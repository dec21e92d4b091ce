"""Attention with a position bias that keeps no scores: they are computed again, a row at a time.

T5 adds a bias to its scores, for which torch has no attention on CPUs that is both fast and lean:
plain attention keeps (B, heads, T, T) probabilities, `sdpa` with the bias as its mask took longer
than plain attention here (2 cores, 256 tokens).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from tuninglab.adapters.native.library import call, has_kernels

NAME = "tuninglab_lean"


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
        batch, heads, queries, width = query.shape
        total = torch.empty(batch, heads, queries)
        # Where it stands is where T5 wants it next: (B, T, heads, D).
        out = torch.empty(batch, queries, heads, value.shape[-1], dtype=query.dtype)
        laid = _laid(bias, query)
        for row in range(batch):
            scores = torch.bmm(query[row], key[row].transpose(1, 2))
            told = _told(scores, laid, mask, row, causal, scaling)
            call("softmax", query.dtype, *told, total[row], *scores.shape)
            out[row] = torch.bmm(scores, value[row]).transpose(0, 1)
        ctx.save_for_backward(query, key, value, bias, mask, total)
        ctx.causal, ctx.scaling = causal, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, bias, mask, total = ctx.saved_tensors
        bias = _laid(bias, query)
        dq, dk, dv = (torch.empty_like(t) for t in (query, key, value))
        for row in range(len(query)):
            grad = grads[0][row].transpose(0, 1)
            scores = torch.bmm(query[row], key[row].transpose(1, 2))
            ds = torch.bmm(grad, value[row].transpose(1, 2))
            told = _told(scores, bias, mask, row, ctx.causal, ctx.scaling)
            call("softmax_grad", query.dtype, *told, total[row], ds, *scores.shape)
            dv[row] = torch.bmm(scores.transpose(1, 2), grad)
            dq[row] = torch.bmm(ds, key[row])
            dk[row] = torch.bmm(ds.transpose(1, 2), query[row])
        return dq, dk, dv, None, None, None, None


def _laid(bias: Tensor | None, query: Tensor) -> Tensor | None:
    # All layers share one bias, laid out otherwise: kept as it is, a copy lives for one layer.
    return None if bias is None else bias.detach().to(query.dtype).contiguous()


def _told(
    scores: Tensor, bias: Tensor | None, mask: Tensor | None, row: int, causal: bool, scaling: float
) -> tuple:
    """What the kernels take of a batch row: scores, bias, mask and its step, causal, scaling."""
    step = 0
    if mask is not None:
        mask = mask[row % len(mask), 0]
        step = mask.stride(0) if len(mask) > 1 else 0
    if bias is not None:
        bias = bias[row % len(bias)]
    return scores, bias, mask, step, int(causal), scaling


def lean_attention(
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
    trained = position_bias is not None and position_bias.requires_grad
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


AttentionInterface.register(NAME, lean_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)

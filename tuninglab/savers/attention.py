"""Attention with a position bias that keeps no scores: the backward pass computes them again.

T5 adds a bias to its scores, for which torch has no attention on CPUs that is fast and small:
plain attention keeps (B, heads, T, T) probabilities, `sdpa` with the bias as its mask took longer
than plain attention here (2 cores, 256 tokens).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tuninglab.kernels.dispatch import Kernel, in_c

NAME = "tuninglab_savers"
# The scores become probabilities, in place; `total` is the log of each row's sum of exponentials.
_SOFTMAX = Kernel(
    "softmax(scores: T[B H Q K], bias: T[H Q K]?, mask: bool[B~ Q~ K]?, causal: int,"
    " scaling: float) -> total: f32[B H Q]"
)
# In place too: scores become probabilities, the gradient of those becomes that of q k^T.
_SOFTMAX_GRAD = Kernel(
    "softmax_grad(scores: T[B H Q K], bias: T[H Q K]?, mask: bool[B~ Q~ K]?, causal: int,"
    " scaling: float, total: f32[B H Q], grad: T[B H Q K])"
)
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
        """Attention (B, T, heads, D) of a few rows of the batch at a time, keeping sums alone.

        q, k, v: (B, heads, T or S, D); bias: (1, heads, T, S); mask: (B, T, S).
        """
        batch, heads, queries, _ = query.shape
        total = torch.empty(batch, heads, queries)
        # Where it stands is where T5 wants it next: (B, T, heads, D).
        out = torch.empty(batch, queries, heads, value.shape[-1], dtype=query.dtype)
        laid = _laid(bias, query)
        # Once, and kept so: of parts of what lies with steps each product would make copies.
        query, key, value = (tensor.contiguous() for tensor in (query, key, value))
        for rows in _groups(query, key):
            scores = _product(query[rows], key[rows].mT)  # (b, heads, T, S)
            total[rows] = _SOFTMAX(
                scores, laid, mask if mask is None else mask[rows], causal, scaling
            )
            out[rows] = _product(scores, value[rows]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, bias, mask, total)
        ctx.causal, ctx.scaling = causal, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The scores are made again, as in the forward pass, from what it kept."""
        query, key, value, bias, mask, total = ctx.saved_tensors
        laid = _laid(bias, query)
        dq, dk, dv = (torch.empty_like(t) for t in (query, key, value))
        given = grads[0].transpose(1, 2).contiguous()  # (B, heads, T, D)
        for rows in _groups(query, key):
            grad = given[rows]
            # Both (b, heads, T, S), alive for these rows of the batch only.
            scores, ds = _product(query[rows], key[rows].mT), _product(grad, value[rows].mT)
            told = (scores, laid, mask if mask is None else mask[rows], ctx.causal, ctx.scaling)
            _SOFTMAX_GRAD(*told, total[rows], ds)
            _product(scores.mT, grad, dv[rows])
            _product(ds, key[rows], dq[rows])
            _product(ds.mT, query[rows], dk[rows])
        return dq, dk, dv, None, None, None, None


def _laid(bias: Tensor | None, query: Tensor) -> Tensor | None:
    # All layers share one bias, laid out otherwise: kept as it is, a copy lives for one layer.
    return None if bias is None else bias[0].detach().to(query.dtype).contiguous()


def _groups(query: Tensor, key: Tensor) -> list[slice]:
    """Batch rows that are computed together: as many as have scores that fit a core's cache."""
    batch, heads, queries, _ = query.shape
    size = max(1, SCORES_AT_A_TIME // max(1, heads * queries * key.shape[2]))
    return [slice(start, start + size) for start in range(0, batch, size)]


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """(B, heads, T, D) @ (B, heads, D, S) -> (B, heads, T, S), into `out` without gaps if given."""
    into = None if out is None else out.flatten(0, 1)
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out=into).unflatten(0, left.shape[:2])


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
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # As torch's own attention does. Else a product would come out in another format than the
        # queries that it is made of.
        to = torch.get_autocast_dtype(kind)
        query, key, value = query.to(to), key.to(to), value.to(to)
    # A bias that trains needs its gradient; one a batch row has another layout.
    bias = position_bias
    trained = bias is not None and (bias.requires_grad or len(bias) > 1)
    causal = attention_mask is None and query.shape[2] > 1 and bool(getattr(module, "is_causal", 0))
    keeps = query.requires_grad or key.requires_grad or value.requires_grad
    # Generation is a query at a time; there is nothing to keep.
    if trained or dropout or not keeps or not in_c(query, key, value):
        # torch's own attention, which keeps what it needs.
        how = {"dropout": dropout, "scaling": scaling, "is_causal": causal}
        bias = None if bias is None else bias.to(query.dtype)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, position_bias=bias, **how
        )
    mask = attention_mask
    if mask is not None:
        # (B or 1, 1, T or 1, S) -> (B, T, S), with a step of 0 where one row stands for all.
        mask = mask.contiguous()[:, 0].expand(len(query), query.shape[2], -1)
    return _BiasedAttention.apply(query, key, value, position_bias, mask, causal, scaling), None


AttentionInterface.register(NAME, saving_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)

"""Attention by whichever way is fast for a device and a number format; chosen in one place.

torch's own (`scaled_dot_product_attention`) nearly everywhere. But on CPUs with bf16 arithmetic its
backward pass in bf16 makes many small products that do not use that arithmetic: forward and
backward pass took 7.4 ms where plain products took 3.6 (2 rows, 8 heads, 128 tokens; 1 core of
AVX512-BF16), 8.7 where they took 1.1 with 16 rows of 40 tokens.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Other CPUs emulate bf16 products, or were not measured (Arm).
BF16_CPU = ("avx512_bf16", "amx_bf16", "avx10_2")
# Scores of a head up to which plain products win, and are kept: 512 queries on 512 keys took 0.64
# of the time, 1024 on 1024 took 0.82 and would keep four times as much.
MOST_SCORES = 512 * 512
SCORES_AT_A_TIME = 2**19  # 2 MiB of float32


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scaling: float | None = None,
) -> Tensor:
    """softmax(query key^T * scaling) value, of (B, H, T, D) and twice (B, H, S, D): (B, H, T, D).

    Args:
        query: with key and value as they come; autocast is minded.
        key: of S keys.
        value: one for each.
        mask: boolean, (B or 1, H or 1, T or 1, S), true where a query may look.
        causal: a query looks at the keys up to its own number; without a mask.
        scaling: None stands for D ** -0.5.
    """
    query, key, value = autocast(query, key, value)
    if not takes_products(query, key, value):
        how: Any = {"attn_mask": mask, "is_causal": causal, "scale": scaling}
        return F.scaled_dot_product_attention(query, key, value, **how)
    if causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()[None, None]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _PlainProducts.apply(query, key, value, mask, scaling)


def takes_products(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attend` takes plain products for these: in training alone.

    A forward pass without a gradient is as fast in torch's own.
    """
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    few = query.shape[2] * key.shape[2] <= MOST_SCORES
    here = query.is_cpu and query.dtype == key.dtype == value.dtype == torch.bfloat16
    return trains and few and here and bf16_cpu() and not torch.compiler.is_compiling()


def autocast(*tensors: Tensor) -> list[Tensor]:
    """Tensors in the format that autocast, if it is on, gives to what torch's attention takes."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return [*tensors]
    return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]


@functools.cache
def bf16_cpu() -> bool:
    """Whether this CPU multiplies bf16 itself, in a way that was measured."""
    # Older torch does not tell.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in BF16_CPU)


class _PlainProducts(torch.autograd.Function):
    """Scores and their softmax in float32, as torch's own has them; the rest in bf16.

    Scores in bf16 (transformers' `eager`) are wrong by 2 to 6 times as much, in results and
    gradients, and save little: one product of five.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        """(B, H, T, D) of `attend`; keeps the probabilities (B, H, T, S) in bf16."""
        batch, heads, queries, _ = query.shape
        kept = query.new_empty(batch, heads, queries, key.shape[2])
        # Lies as the next layer wants it: (B, T, H, D).
        out = query.new_empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)
        mask = mask if mask is None else mask.expand(batch, -1, queries, -1)
        for rows in _groups(kept):
            scores = (query[rows].float() * scaling) @ key[rows].float().transpose(2, 3)
            if mask is not None:
                scores.masked_fill_(~mask[rows], -torch.inf)
            probabilities = scores.softmax(-1)
            if mask is not None:
                # A query that may look nowhere comes out as 0, as from torch's own.
                probabilities.masked_fill_(~mask[rows].any(-1, keepdim=True), 0)
            kept[rows] = probabilities
            out[rows] = kept[rows] @ value[rows]
        ctx.save_for_backward(query, key, value, kept)
        ctx.scaling = scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients of query, key and value, each of its shape."""
        query, key, value, kept = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(tensor) for tensor in (query, key, value))
        for rows in _groups(kept):
            probabilities, grad = kept[rows], grads[0][rows]
            dv[rows] = probabilities.transpose(2, 3) @ grad
            dp = grad @ value[rows].transpose(2, 3)
            # p * (dp - sum of p * dp), in one pass that adds up in float32.
            ds = torch.ops.aten._softmax_backward_data(dp, probabilities, -1, dp.dtype)
            ds.mul_(ctx.scaling)
            dq[rows] = ds @ key[rows]
            dk[rows] = ds.transpose(2, 3) @ query[rows]
        return dq, dk, dv, None, None


def _groups(scores: Tensor) -> list[slice]:
    """Rows of the batch that are computed together: their float32 scores stay in the cache."""
    size = max(1, SCORES_AT_A_TIME // max(1, scores[0].numel()))
    return [slice(start, start + size) for start in range(0, len(scores), size)]

"""RMS norm that keeps its input and one number a row for the backward pass, nothing else.

Where int8 layers read what it gives, they keep that as int8 rows; then it can keep the same rows
instead of its input (D numbers of 2 or 4 bytes a token less), and makes the input again from

    y = q s = x inverse weight

In that input each number is off by half a step, s / 2, over what it was multiplied by, and by no
more than itself: a number whose y is below half a step comes back as 0. So it goes into the
gradient's second term alone, and where a weight is tiny beside the others of its norm, that term is
lost for its column. The first, grad x weight x inverse, is exact.
"""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from tuninglab.int8.linear import hang_rows
from tuninglab.int8.rows import TINIEST, quantise_rows, scale_rows
from tuninglab.kernels.dispatch import Kernel, run

_NORM = Kernel("rms_norm(x: T[M N], weight: f32[N], eps: float) -> y: T[M N], inverse: f32[M]")
_GRAD = Kernel(
    "rms_norm_grad(grad: T[M N], x: T[M N], inverse: f32[M], weight: f32[N]) -> dx: T[M N]"
)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.flatten(0, -2).contiguous()
        y, inverse = run(_NORM, _torch_normed, rows, weight.float(), eps)
        # The input is kept by the residual connection anyway; transformers' own module keeps two
        # float32 copies of it besides.
        ctx.save_for_backward(x, inverse, weight)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, inverse, weight = ctx.saved_tensors
        grad, rows = (t.flatten(0, -2).contiguous() for t in (grads[0], x))
        dx = run(_GRAD, _torch_normed_grad, grad, rows, inverse, weight.float())
        return dx.view(x.shape), None, None


class _RowsRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Y (..., D), and its rows as int8 (M, D) with their scales (M,)."""
        y, inverse = run(_NORM, _torch_normed, x.flatten(0, -2).contiguous(), weight.float(), eps)
        q, scale = quantise_rows(y)
        ctx.save_for_backward(q, scale, inverse, weight)
        ctx.mark_non_differentiable(q, scale)
        return y.view(x.shape), q, scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, scale, inverse, weight = ctx.saved_tensors
        grad, weight = grads[0].flatten(0, -2).contiguous(), weight.float()
        # Alive for this alone, in the format of the gradient, as the kernel wants it.
        x = scale_rows(q, scale / inverse, 1 / weight, grad.dtype)
        dx = run(_GRAD, _torch_normed_grad, grad, x, inverse, weight)
        return dx.view(grads[0].shape), None, None


class SavingRMSNorm(nn.Module):
    """Stands in for LlamaRMSNorm and T5LayerNorm, with the same `weight` (D,).

    Attributes:
        keeps_rows: keep the int8 rows of what it gives instead of its input; see `allows_rows`.
    """

    keeps_rows = False

    def __init__(self, norm: nn.Module):
        super().__init__()
        original: Any = norm
        self.weight: nn.Parameter = original.weight
        self.variance_epsilon: float = original.variance_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., D) -> (..., D) in the same number format."""
        if self.weight.requires_grad:
            rows = hidden_states.flatten(0, -2)
            return _torch_normed(rows, self.weight, self.variance_epsilon)[0].view_as(hidden_states)
        given = (hidden_states, self.weight, self.variance_epsilon)
        keeps = torch.is_grad_enabled() and hidden_states.requires_grad
        if not (self.keeps_rows and keeps) or torch.compiler.is_compiling():
            return _RMSNorm.apply(*given)
        y, q, scale = _RowsRMSNorm.apply(*given)
        hang_rows(y, q, scale)
        return y

    @torch.no_grad()
    def allows_rows(self) -> bool:
        """Whether its input can be made from its output: where a weight is 0, nothing is left."""
        # Of a planned model's weights nothing is known: none is 0 in usual ones.
        return self.weight.is_meta or bool((self.weight.abs() >= TINIEST).all())

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


def is_rms_norm(module: nn.Module) -> bool:
    """Whether a module is a frozen RMS norm; tried on a row, because there are other formulas."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or eps is None:
        return False
    if weight.requires_grad or isinstance(module, SavingRMSNorm):
        return False
    if len(inspect.signature(module.forward).parameters) > 1:
        return False  # gated ones (Mamba 2, Qwen3-Next) are plain until the gate is given
    trial = copy.copy(module)
    if weight.is_meta:
        # Planned, without weights: the formula is the same with any.
        weight = torch.linspace(0.5, 1, len(weight), dtype=weight.dtype, device="cpu")
        trial._parameters = {**module._parameters, "weight": nn.Parameter(weight)}
    row = torch.linspace(-1, 2, len(weight), device=weight.device)[None].to(weight.dtype)
    with torch.no_grad():
        expected, _ = _torch_normed(row, weight.float(), eps)
        return torch.allclose(trial(row).float(), expected.float(), rtol=2e-2, atol=1e-3)


def _torch_normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    inverse = torch.rsqrt(x.float().pow(2).mean(1) + eps)
    return (x.float() * inverse[:, None] * weight).to(x.dtype), inverse


def _torch_normed_grad(grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    weighted, unit = grad.float() * weight, x.float() * inverse[:, None]
    along = (weighted * unit).mean(1, keepdim=True)
    return ((weighted - unit * along) * inverse[:, None]).to(x.dtype)

"""Activations and gated linear units that keep their inputs for the backward pass as int8 rows."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuninglab.int8.rows import quantise_rows, scale_rows
from tuninglab.kernels.compiled import call, has_kernels

# In the order of the C kernels.
ACTIVATIONS = (F.silu, lambda x: F.gelu(x, approximate="tanh"), F.gelu)
# Names of the gate, the other factor and the way down: LLaMA and its kin, T5 v1.1.
GATED = (("gate_proj", "up_proj", "down_proj"), ("wi_0", "wi_1", "wo"))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: int, e: Tensor, u: Tensor | None) -> Tensor:
        rows = e.flatten(0, -2).contiguous()
        by = None if u is None else u.flatten(0, -2).contiguous()
        kept = [*quantise_rows(rows), *(quantise_rows(by) if by is not None else (None, None))]
        ctx.save_for_backward(*kept)
        ctx.activation = activation
        if has_kernels(rows, by):
            y = torch.empty_like(rows)
            call("gated", rows.dtype, activation, rows, by, y, *rows.shape)
        else:
            y = ACTIVATIONS[activation](rows)
            y = y if by is None else y * by
        return y.view(e.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, scale, by, by_scale = ctx.saved_tensors
        grad = grads[0].flatten(0, -2).contiguous()
        if has_kernels(grad):
            de, du = torch.empty_like(grad), None if by is None else torch.empty_like(grad)
            kept = (q, scale, by, by_scale)
            call("gated_grad", grad.dtype, ctx.activation, grad, *kept, de, du, *grad.shape)
        else:
            de, du = _torch_grad(ctx.activation, grad, q, scale, by, by_scale)
        shape = grads[0].shape
        return None, de.view(shape), None if du is None else du.view(shape)


def _torch_grad(
    activation: int,
    grad: Tensor,
    q: Tensor,
    scale: Tensor,
    by: Tensor | None,
    by_scale: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    with torch.enable_grad():
        e = scale_rows(q, scale, None, torch.float32).requires_grad_()
        active = ACTIVATIONS[activation](e)
    if by is None or by_scale is None:
        (de,) = torch.autograd.grad(active, e, grad.float())
        return de.to(grad.dtype), None
    u = scale_rows(by, by_scale, None, torch.float32)
    (de,) = torch.autograd.grad(active, e, grad.float() * u)
    return de.to(grad.dtype), (grad.float() * active.detach()).to(grad.dtype)


class SavingActivation(nn.Module):
    """An activation (silu, GELU) that keeps a byte a number for the backward pass."""

    def __init__(self, activation: int):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return _Gated.apply(self.activation, x, None)


class SavingGLU(nn.Module):
    """Stands in for LLaMA's and T5's gated feed-forward; its layers keep their names."""

    def __init__(self, mlp: nn.Module, names: tuple[str, str, str], activation: int):
        super().__init__()
        self.names, self.activation = names, activation
        for name in names:
            self.add_module(name, mlp.get_submodule(name))
        self.dropout = getattr(mlp, "dropout", nn.Identity())

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, other, down = (self.get_submodule(name) for name in self.names)
        y = _Gated.apply(self.activation, gate(hidden_states), other(hidden_states))
        y = self.dropout(y)
        weight: Any = down.weight
        # T5 in fp16 keeps `wo` in float32: its sums overflow fp16 (transformers issue 20287).
        if weight.is_floating_point() and weight.dtype in (torch.float32, torch.bfloat16):
            y = y if torch.is_autocast_enabled(y.device.type) else y.to(weight.dtype)
        return down(y)


def saving_glu_of(module: nn.Module) -> nn.Module | None:
    """What may stand in for a module that is an activation or a gated feed-forward, else None."""
    if isinstance(module, (SavingGLU, SavingActivation)):
        return None
    children = dict(module.named_children())
    for names in GATED:
        act = children.get("act_fn", children.get("act"))
        if act is not None and children.keys() >= set(names):
            activation = activation_of(act)
            return None if activation is None else SavingGLU(module, names, activation)
    return None


def activation_of(module: nn.Module) -> int | None:
    """Which of ACTIVATIONS a module computes, tried on numbers; None if none of them."""
    x = torch.linspace(-6, 6, 97)
    for number, function in enumerate(ACTIVATIONS):
        if torch.allclose(module(x), function(x), atol=2e-6):
            return number
    return None

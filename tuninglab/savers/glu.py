"""Activations and gated linear units that keep their inputs for the backward pass as int8 rows."""

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuninglab.int8.rows import quantise_rows, scale_rows
from tuninglab.kernels.dispatch import Kernel, run

_GATED = Kernel("gated(activation: int, e: T[M N], u: T[M N]?) -> y: T[M N]")
_GRAD = Kernel(
    "gated_grad(activation: int, grad: T[M N], e: i8[M N], e_scale: f32[M], u: i8[M N]?,"
    " u_scale: f32[M] if u) -> de: T[M N], du: T[M N] if u"
)
# In the order of the C kernels.
ACTIVATIONS = (F.silu, lambda x: F.gelu(x, approximate="tanh"), F.gelu)
# Gradients, given that of the output and the input; unlike autograd, torch compiles them for GPUs.
SLOPES = (
    torch.ops.aten.silu_backward,
    partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    torch.ops.aten.gelu_backward,
)
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
        return run(_GATED, _torch, activation, rows, by).view(e.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, scale, by, by_scale = ctx.saved_tensors
        grad = grads[0].flatten(0, -2).contiguous()
        de, du = run(_GRAD, _torch_grad, ctx.activation, grad, q, scale, by, by_scale)
        shape = grads[0].shape
        return None, de.view(shape), None if du is None else du.view(shape)


def _torch(activation: int, e: Tensor, u: Tensor | None) -> Tensor:
    y = ACTIVATIONS[activation](e)
    return y if u is None else y * u


def _torch_grad(
    activation: int,
    grad: Tensor,
    q: Tensor,
    scale: Tensor,
    by: Tensor | None,
    by_scale: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    e, g = scale_rows(q, scale, None, torch.float32), grad.float()
    if by is None or by_scale is None:
        return SLOPES[activation](g, e).to(grad.dtype), None
    u = scale_rows(by, by_scale, None, torch.float32)
    de, du = SLOPES[activation](g * u, e), g * ACTIVATIONS[activation](e)
    return de.to(grad.dtype), du.to(grad.dtype)


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


def gated_names(module: nn.Module) -> tuple[str, str, str] | None:
    """The layers of what has the parts of a gated feed-forward, whatever it does with them."""
    children = dict(module.named_children())
    named = [names for names in GATED if children.keys() >= set(names)]
    return named[0] if named and not isinstance(module, SavingGLU) else None


def saving_glu_of(module: nn.Module) -> SavingGLU | None:
    """What may stand in for a gated feed-forward; None where that would give other numbers."""
    names, children = gated_names(module), dict(module.named_children())
    act = children.get("act_fn", children.get("act"))
    if names is None or act is None or len(inspect.signature(module.forward).parameters) > 1:
        return None
    try:
        activation = activation_of(act)
        if activation is None or not _computes_the_same(module, names, activation):
            return None
    # Somebody else's code, run on layers that are not its own.
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None
    return SavingGLU(module, names, activation)


class _StandIn(nn.Module):
    """Takes a layer's place in a trial: a known function, and a format of weights to be asked."""

    def __init__(self, function: Callable[[Tensor], Tensor], dtype: torch.dtype):
        super().__init__()
        self.forward, self.weight = function, torch.empty(0, dtype=dtype, device="cpu")


@torch.no_grad()
def _computes_the_same(module: nn.Module, names: tuple[str, str, str], activation: int) -> bool:
    """Whether a feed-forward is down(dropout(act(gate) * other)), tried on numbers.

    Names do not tell: FalconH1 multiplies in between, DeepSeek-V4 and Step 3.7 clamp at 7 to 16.
    Its layers are replaced in a copy, which costs no product and lets all values up to 216 meet
    each other as gate and other, without fp16 overflowing.
    """
    weight: Any = module.get_submodule(names[2]).weight
    own = {weight.dtype} if weight.is_floating_point() else set()
    # On the CPU, whatever the default is where a model without weights is planned.
    x = torch.linspace(-6, 6, 97, device="cpu").pow(3).expand(97, 97)
    for dtype in {torch.float32} | own:
        trial = copy.copy(module)
        # In training, where a dropout of its own making shows as well.
        trial.training = True
        # Dropout and the way down are told apart, so that their order shows.
        functions = (lambda x: x, lambda x: x.t(), lambda x: x + 1, lambda x: x / 2)
        layers = zip((*names, "dropout"), functions, strict=True)
        stand_ins = {n: _StandIn(f, dtype) for n, f in layers if n in module._modules}
        trial._modules = {**module._modules, **stand_ins}
        expected, got = trial(x.to(dtype)), SavingGLU(trial, names, activation)(x.to(dtype))
        # By norm: in 16 bits single numbers of GELU's tail are off by far more, one way or other.
        error = (got.float() - expected.float()).norm() / expected.float().norm()
        if not error < (1e-5 if dtype == torch.float32 else 2e-2):
            return False
    return True


def activation_of(module: nn.Module) -> int | None:
    """Which of ACTIVATIONS a module computes, tried on numbers; None if none of them."""
    x = torch.linspace(-6, 6, 97, device="cpu")
    for number, function in enumerate(ACTIVATIONS):
        if torch.allclose(module(x), function(x), atol=2e-6):
            return number
    return None

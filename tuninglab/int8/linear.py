"""Int8Linear: a frozen linear layer that multiplies int8 numbers, forward and backward.

Forward, for tokens x (M, K) and a weight of rows W (N, K) stored as int8 with a scale a row:

    q_x, s_x = quantise_rows(x)
    y = s_x (q_x W_q^T) s_w  +  c (x A^T) B^T

Backward, for the gradient g (M, N) of y. The scale of the weight lies on the axis that is summed
over, so it is multiplied into g before g is quantised; the same W_q serves both directions:

    q_g, s_g = quantise_rows(g s_w)
    dx = s_g (q_g W_q)  +  c (g B) A

A, B and c are LoRA's. The weight is frozen, so its gradient never exists; x is kept as q_x, s_x.

A few rows without a gradient, as generation has them, are not rounded: y = (x W_q^T) s_w there.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tuninglab.int8.cross_entropy import cross_entropy, loss_and_grad
from tuninglab.int8.rows import frozen, product, quantise_rows, scale_rows
from tuninglab.int8.ways import Way, ways
from tuninglab.kernels.few_rows import fits, int8_product


class _Plan(NamedTuple):
    """How one call computes: LoRA's factor c, the format of y, and the way of each direction."""

    scaling: float
    dtype: torch.dtype
    forward: Way
    backward: Way


class _Int8Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        weight_scale: Tensor,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        plan: _Plan,
    ) -> Tensor:
        """X (..., K) times weight (N, K) and LoRA, A (R, K) and B (N, R): (..., N)."""
        rows, dtype = x.reshape(-1, x.shape[-1]), plan.dtype  # (..., K) -> (M, K)
        q = scale = h = None
        if lora_a is not None or plan.forward == "int8":
            q, scale = _quantised_once(x, rows)  # int8 (M, K), float32 (M,)
        lora = None
        if lora_a is not None and lora_b is not None:
            # A and B see the numbers that were not rounded; h (M, R) is small enough to be kept.
            h = rows.to(dtype) @ lora_a.to(dtype).t()
            lora = (h, lora_b.to(dtype).t(), plan.scaling)
        if plan.forward == "int8":
            assert q is not None and scale is not None
            y = product(q, scale, weight.t(), weight_scale, dtype, lora)  # (M, N)
        else:
            y = rows.to(dtype) @ scale_rows(weight, weight_scale, None, dtype).t()
            if lora is not None:
                y.addmm_(*lora[:2], alpha=plan.scaling)
        if lora is None:
            q = scale = None  # without LoRA nothing needs x again
        ctx.save_for_backward(weight, weight_scale, q, scale, h, lora_a, lora_b)
        ctx.plan, ctx.shape, ctx.x_dtype = plan, x.shape, x.dtype
        return y.view(*x.shape[:-1], weight.shape[0])  # (..., N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """From a gradient (..., N) those of x, A and B; the frozen weight has none."""
        weight, weight_scale, q, scale, h, lora_a, lora_b = ctx.saved_tensors
        grad, dtype = grads[0].reshape(-1, grads[0].shape[-1]), grads[0].dtype  # (M, N)
        dx = da = db = gb = None
        if h is not None:
            gb = grad @ (lora_b * ctx.plan.scaling).to(dtype)  # (M, R)
            # Made as (R, N): the other way round 2048 x 1024 numbers took 696 us, this takes 494.
            db = (h.to(dtype).t() @ grad).t().contiguous()
            db = db.to(lora_b.dtype).mul_(ctx.plan.scaling)  # (N, R)
            # x itself was not kept: its int8 rows come back as floats (M, K) for this alone.
            da = (gb.t() @ scale_rows(q, scale, None, dtype)).to(lora_a.dtype)  # (R, K)
        if ctx.needs_input_grad[0]:
            if ctx.plan.backward == "int8":
                # N is summed over here, so its scales go into g before g is rounded.
                q_grad, grad_scale = quantise_rows(grad, weight_scale)  # int8 (M, N)
                lora = None if gb is None else (gb, lora_a.to(dtype), 1.0)
                dx = product(q_grad, grad_scale, weight, None, dtype, lora)  # (M, K)
            else:
                dx = grad @ scale_rows(weight, weight_scale, None, dtype)
                if gb is not None:
                    dx.addmm_(gb, lora_a.to(dtype))
            dx = dx.view(ctx.shape).to(ctx.x_dtype)
        return dx, None, None, da, db, None


def _quantised_once(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise the rows of x, once for all layers that read it (q, k and v; gate and up).

    The result hangs on x itself, so that it goes when x goes.
    """
    if torch.compiler.is_compiling() or x.is_inference():
        return quantise_rows(rows)
    version, *kept = getattr(x, "_int8_rows", (None,))
    if version != x._version:
        kept = quantise_rows(rows)
        hang_rows(x, *kept)
    q, scale = kept
    return q, scale


def hang_rows(x: Tensor, q: Tensor, scale: Tensor) -> None:
    """Let the layers that read x (..., K) find its int8 rows, q (M, K) and scale (M,)."""
    x._int8_rows = (x._version, q, scale)  # pyright: ignore[reportAttributeAccessIssue]


class Int8Weight(nn.Module):
    """What holds an int8 `weight` and a float32 `weight_scale` a row, which no cast rounds."""

    weight_scale: nn.Parameter

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        exact = self.weight_scale.data
        super()._apply(fn, recurse)
        # In 16 bits the scales would round every weight once more: a cast of the model skips them.
        if self.weight_scale.dtype != exact.dtype:
            self.weight_scale.data = exact.to(self.weight_scale.device)
        return self


class Int8Linear(Int8Weight):
    """A frozen linear layer without a float copy of its weight.

    State dict: `weight` int8 (N, K), `weight_scale` float32 (N,), `bias` (N,) where there is one.

    Attributes:
        backward: "int8" or "dequantise" to insist on one; None takes what `ways` says.
    """

    backward: Way | None = None

    def __init__(self, in_features: int, out_features: int, bias: bool = False, device: Any = None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = frozen(
            torch.empty(out_features, in_features, dtype=torch.int8, device=device)
        )
        # Whatever the default: from_pretrained builds models of 16 bits with that as the default.
        self.weight_scale = frozen(torch.empty(out_features, dtype=torch.float32, device=device))
        self.bias = frozen(torch.empty(out_features, device=device)) if bias else None

    @classmethod
    def of(cls, linear: nn.Linear) -> "Int8Linear":
        """Quantise a linear layer; it is left as it is."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, "meta")
        layer.weight, layer.weight_scale = map(frozen, quantise_rows(linear.weight.detach()))
        if linear.bias is not None:
            layer.bias = frozen(linear.bias.detach().clone())
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return self.multiply(x)

    def multiply(
        self,
        x: Tensor,
        lora_a: Tensor | None = None,
        lora_b: Tensor | None = None,
        scaling: float = 1.0,
    ) -> Tensor:
        """(..., K) -> (..., N), with LoRA of A (R, K) and B (N, R) in the same pass."""
        if fits(x, self.weight):
            y = int8_product(x, self.weight, self.weight_scale)
            if lora_a is not None and lora_b is not None:
                h = F.linear(x, lora_a.to(x.dtype))  # (..., R)
                y.add_(F.linear(h, lora_b.to(x.dtype)), alpha=scaling)
            return y if self.bias is None else y.add_(self.bias)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        forward, backward = ways(x.device, x.numel() // self.in_features, self.weight.shape)
        plan = _Plan(scaling, dtype, forward, self.backward or backward)
        y = _Int8Product.apply(x, self.weight, self.weight_scale, lora_a, lora_b, plan)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def loss_and_grad(
        self, hidden: Tensor, targets: Tensor, factor: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy of the layer's output as logits, and the gradient of `hidden`.

        Args:
            hidden: (N, K).
            targets: (N,), none negative.
            factor: multiplies the gradient before it is rounded to the format of `hidden`.
        """
        way, _ = ways(hidden.device, len(hidden), self.weight.shape)
        if way != "int8" or self.bias is not None:
            return loss_and_grad(self, hidden, targets, factor)
        return cross_entropy(hidden, targets, self.weight, self.weight_scale, factor)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (N, K) as float numbers."""
        return scale_rows(self.weight, self.weight_scale, None, dtype)

    def to_linear(self, dtype: torch.dtype) -> nn.Linear:
        """A float layer of the dequantised weight, frozen."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        linear.weight = frozen(self.dequantised(dtype))
        if self.bias is not None:
            linear.bias = frozen(self.bias.detach().to(dtype))
        return linear

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, int8"

"""Int8Linear: a frozen linear layer that multiplies int8 numbers, forward and backward.

Forward, for tokens x (M, K) and a weight of rows W (N, K) stored as int8 with a scale a row:

    q_x, s_x = quantise_rows(x)
    y = s_x (q_x W_q^T) s_w  +  c (x A^T) B^T

Backward, for the gradient g (M, N) of y. The scale of the weight lies on the axis that is summed
over, so it is multiplied into g before g is quantised; the same W_q serves both directions:

    q_g, s_g = quantise_rows(g s_w)
    dx = s_g (q_g W_q)  +  c (g B) A

A, B and c are LoRA's. The weight is frozen, so its gradient never exists; x is kept as q_x, s_x.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tuninglab.adapters.int8.rows import multiply, quantise_rows, scale_rows


class _Int8Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        weight_scale: Tensor,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        scaling: float,
        dtype: torch.dtype,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        q, scale = quantise_rows(rows)
        y = scale_rows(multiply(q, weight.t()), scale, weight_scale, dtype)
        h = None
        if lora_a is not None and lora_b is not None:
            h = rows.to(dtype) @ lora_a.to(dtype).t()
            y.addmm_(h, lora_b.to(dtype).t(), alpha=scaling)
            ctx.save_for_backward(weight, weight_scale, q, scale, h, lora_a, lora_b)
        else:
            ctx.save_for_backward(weight, weight_scale)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        weight, weight_scale, *lora = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        dx = da = db = None
        if lora:
            q, scale, h, lora_a, lora_b = lora
            gb = (grad @ lora_b.to(grad.dtype)).mul_(ctx.scaling)
            db = (grad.t() @ h).mul_(ctx.scaling).to(lora_b.dtype)
            da = (gb.t() @ scale_rows(q, scale, None, grad.dtype)).to(lora_a.dtype)
        if ctx.needs_input_grad[0]:
            q_grad, grad_scale = quantise_rows(grad, weight_scale)
            dx = scale_rows(multiply(q_grad, weight), grad_scale, None, grad.dtype)
            if lora:
                dx.addmm_(gb, lora_a.to(grad.dtype))
            dx = dx.view(ctx.shape).to(ctx.dtype)
        return dx, None, None, da, db, None, None


class Int8Linear(nn.Module):
    """A frozen linear layer without a float copy of its weight.

    State dict: `weight` int8 (N, K), `weight_scale` float32 (N,), `bias` (N,) where there is one.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, device: Any = None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        weight = torch.empty(out_features, in_features, dtype=torch.int8, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        scale = torch.empty(out_features, device=device)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device), requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear) -> "Int8Linear":
        """Quantise a linear layer; it is left as it is."""
        weight = linear.weight.detach()
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, "meta")
        q, scale = quantise_rows(weight)
        layer.weight = nn.Parameter(q, requires_grad=False)
        layer.weight_scale = nn.Parameter(scale, requires_grad=False)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
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
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        y = _Int8Product.apply(x, self.weight, self.weight_scale, lora_a, lora_b, scaling, dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (N, K) as float numbers."""
        return scale_rows(self.weight, self.weight_scale, None, dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, int8"

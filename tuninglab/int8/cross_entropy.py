"""Cross-entropy and its gradient at once: of any head, and of an int8 head without float logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuninglab.int8.rows import LIMIT, multiply, product, quantise_rows, scale_rows
from tuninglab.kernels.dispatch import Kernel, run

# It overwrites the sums. They are scratch memory.
_LOSS = Kernel(
    "cross_entropy(sums: i32[M N], row: f32[M], column: f32[N], target: i64[M])"
    " -> loss: f32[M], coarse: i8[M N], fine: i8[M N], step: f32[M]"
)
# One level of int8 would lose the many small probabilities: next to 0.5, all below 0.002 are 0.
FINER = 254


def loss_and_grad(
    head: nn.Module, hidden: Tensor, targets: Tensor, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The summed loss of any head, and the gradient of its input times a factor."""
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_()
        loss = F.cross_entropy(head(hidden).float(), targets, reduction="sum")
        # Here, because the gradient of the logits is made in the format of the logits.
        (grad,) = torch.autograd.grad(loss * factor, hidden)
    return loss.detach(), grad


def cross_entropy(
    hidden: Tensor, targets: Tensor, weight: Tensor, weight_scale: Tensor, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Summed loss of logits hidden (N, K) @ weight^T, and the gradient of `hidden` times `factor`.

    Args:
        hidden: (N, K); all N logit rows exist at a time.
        targets: (N,), none negative.
        weight: int8 (V, K).
        weight_scale: float32 (V,).
        factor: goes in before the gradient is rounded to the format of `hidden`.
    """
    q, scale = quantise_rows(hidden)
    sums = multiply(q, weight.t(), row_major=True)  # (N, V)
    told = (sums, scale, weight_scale, targets.contiguous())
    loss, coarse, fine, step = run(_LOSS, _torch, *told)
    # The gradient of the logits is their probabilities, less 1 at the target.
    grad = product(coarse, step, weight, None, torch.float32)
    grad += product(fine, step / FINER, weight, None, torch.float32)
    grad -= scale_rows(weight[targets], weight_scale[targets], None, torch.float32)
    return loss.sum(), grad.mul_(factor).to(hidden.dtype)


def _torch(
    sums: Tensor, scale: Tensor, weight_scale: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss (N,), and probabilities times `weight_scale` in coarse and fine steps (N, V)."""
    logits = sums.float() * scale[:, None] * weight_scale
    total = logits.logsumexp(1, keepdim=True)
    scaled = (logits - total).exp() * weight_scale
    step = scaled.amax(1) / LIMIT
    value = scaled / step[:, None]
    coarse = value.round()
    fine = ((value - coarse) * FINER).round()
    loss = (total - logits.gather(1, targets[:, None]))[:, 0]
    return loss, coarse.to(torch.int8), fine.to(torch.int8), step

"""The loss of next tokens, as a sum that other ranks and accumulation steps can join."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuninglab.int8.cross_entropy import loss_and_grad

# Of a loss in chunks, the gradient is made before a loss scaler can have multiplied the loss, and
# in fp16 what is below 6e-8 would be 0 by then. So it is made so many times too large, which is
# what a scale of 65536 is to each of 256 answer tokens in a plain loss, and brought back in
# float32. No component can overflow while no weight of the head is beyond 65504 / (2 x 256) = 128.
# A power of two: in formats of a wide range it changes no bit. The other way, a float32 gradient,
# takes twice the memory and does not help: the logits' own gradient would still be made in fp16.
FACTOR = 256.0


def next_token_loss(
    logits: Tensor, targets: Tensor, num_items_in_batch: int | Tensor | None = None
) -> Tensor:
    """Cross-entropy of logits (..., V) and targets (...), in float32, without targets of -100.

    The sum is divided by `num_items_in_batch`, or else by the count of targets; no target is 0.

    Raises:
        ValueError: logits were not computed for every target.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits of {tuple(logits.shape[:-1])} positions for labels of {tuple(targets.shape)}; "
            "a loss needs logits_to_keep=0 (or labels_only_logits=True)"
        )
    # A sum, because a mean over this batch cannot be joined exactly with those of other ranks and
    # accumulation steps that hold other numbers of answer tokens.
    total = F.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten().to(logits.device), reduction="sum"
    )
    return total / _divisor(targets, num_items_in_batch, total.device)


def chunked_loss(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    chunk_tokens: int,
    num_items_in_batch: int | Tensor | None = None,
) -> Tensor:
    """The loss of `next_token_loss` for a frozen head, without ever holding all logits.

    The gradient of a chunk is made right after its loss, in the forward pass, so that nothing but
    (N, D) numbers are kept.

    Args:
        hidden: what goes into the head, (N, D), a row a target.
        head: (N, D) -> logits (N, V). One that has `loss_and_grad` itself is asked for it.
        targets: (N,), none of them -100.
        chunk_tokens: rows whose logits exist at a time.
        num_items_in_batch: as in `next_token_loss`.
    """
    total = _ChunkedLoss.apply(hidden, head, targets, chunk_tokens)
    return total / _divisor(targets, num_items_in_batch, total.device)


def trains(head: nn.Module | None) -> bool:
    """Whether a head has parameters that require gradients; None counts as one."""
    return head is None or any(parameter.requires_grad for parameter in head.parameters())


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Any, targets: Tensor, chunk_tokens: int) -> Tensor:
        """The summed loss of hidden (N, D) against targets (N), and at once its gradient."""
        chunk_loss = getattr(head, "loss_and_grad", None) or partial(loss_and_grad, head)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden)
        for start in range(0, len(hidden), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            loss, grad[part] = chunk_loss(hidden[part], targets[part], FACTOR)
            total += loss
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        # In float32: 1 / N in bf16 is off by up to 0.4 %, and 65536 is beyond fp16.
        return (grad.float() * (grads[0] / FACTOR)).to(grad.dtype), None, None, None


def _divisor(targets: Tensor, count: int | Tensor | None, device: torch.device) -> Tensor:
    if count is None:
        return (targets != -100).sum().clamp(min=1).to(device)
    return torch.as_tensor(count, device=device)

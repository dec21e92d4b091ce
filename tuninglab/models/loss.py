"""The loss of next tokens, as a sum that other ranks and accumulation steps can join."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    if num_items_in_batch is None:
        return total / (targets != -100).sum().clamp(min=1).to(total.device)
    return total / torch.as_tensor(num_items_in_batch, device=total.device)

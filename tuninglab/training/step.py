"""One optimizer step: gradients of all micro-batches, one clipping, one update.

A step runs `gradient_accumulation_steps` micro-batches on each process. Its loss is the sum over
all answer tokens divided by their count over all processes and micro-batches, so two processes
compute what one with twice the batch computes.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from tuninglab.data.batches import Batch
from tuninglab.errors import WorkError
from tuninglab.training.parallel import over_processes
from tuninglab.training.state import Counts, TrainState

# With the scale this low, fp16 gradients overflow for another reason than the scale.
SMALLEST_SCALE = 1.0


class Outcome(NamedTuple):
    """What a step came to; `stop`: a process was signalled to stop."""

    loss: float
    grad_norm: float
    learning_rate: float
    stop: bool


def optimizer_step(
    state: TrainState,
    batches: Sequence[Batch],
    counts: Counts,
    max_grad_norm: float,
    accelerator: Accelerator,
    stop: Sequence[int] = (),
) -> Outcome:
    """Train once on the micro-batches of a step.

    Args:
        state: what is trained; its position in the data is left alone.
        batches: this process's micro-batches.
        counts: of the step, by `count_step`.
        max_grad_norm: gradients are clipped to it; 0: not at all.
        accelerator: carries device, precision and processes.
        stop: signals that this process received.

    Raises:
        WorkError: loss or gradients are not finite; the weights are still those before the step.
    """
    losses = []
    for number, batch in enumerate(batches, 1):
        # Processes exchange gradients once a step, with the last micro-batch.
        waiting = nullcontext() if number == len(batches) else accelerator.no_sync(state.wrapped)
        with waiting:
            # None, where all rows of the step were left out.
            answer_tokens = max(1, counts.answer_tokens)
            loss = batch_loss(state.wrapped, batch, answer_tokens, accelerator)
            # DDP averages over processes; the loss is a share of a sum already.
            accelerator.backward(loss * accelerator.num_processes)
        losses.append(loss.detach().float())
    # Loss and signals in one exchange: each is a wait for the device.
    signalled = torch.tensor(float(bool(stop)), device=accelerator.device)
    sums = over_processes(torch.stack([torch.stack(losses).sum(), signalled]), accelerator)
    total, stopping = sums.tolist()
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    gradient_norm: Any = accelerator.clip_grad_norm_(trained, max_grad_norm or math.inf)
    norm = float(gradient_norm)
    # Before the update, so that what was learned so far is still whole.
    if not math.isfinite(total) or not (math.isfinite(norm) or _scaler_adapts(accelerator)):
        _raise_not_finite(state.progress.step + 1, total, norm, batches, losses)
    rate = float(state.schedule.get_last_lr()[0])
    state.optimizer.step()
    # A step that the fp16 scaler skipped did not happen: the plan of rates waits for it.
    if not accelerator.optimizer_step_was_skipped:
        state.schedule.step()
    state.optimizer.zero_grad()
    return Outcome(total, norm, rate, bool(stopping))


def count_step(batches: Sequence[Batch], accelerator: Accelerator) -> Counts:
    """Count what a step holds over all processes."""
    counts = [sum(getattr(batch, name) for batch in batches) for name in Counts._fields]
    # Alone, nothing is asked of the device: reading from it waits for all the work it was given.
    if accelerator.num_processes > 1:
        summed = over_processes(torch.tensor(counts, device=accelerator.device), accelerator)
        counts = summed.tolist()
    return Counts(*counts)


def batch_loss(
    model: nn.Module, batch: Batch, answer_tokens: int, accelerator: Accelerator
) -> Tensor:
    """Sum of the losses of a batch's answer tokens, divided by `answer_tokens`."""
    inputs = batch.to(accelerator.device).inputs
    # accelerate makes all that a model returns float32, logits too: without them in the result,
    # nobody holds such a copy through the backward pass.
    only = {"labels_only_logits": True, "loss_only": True, "use_cache": False}
    return model(**inputs, **only, num_items_in_batch=answer_tokens).loss


def _scaler_adapts(accelerator: Accelerator) -> bool:
    # fp16: the scaler skips a step whose gradients overflow, and halves its scale.
    return accelerator.scaler is not None and accelerator.scaler.get_scale() > SMALLEST_SCALE


def _raise_not_finite(
    step: int, loss: float, norm: float, batches: Sequence[Batch], losses: list[Tensor]
) -> None:
    # With finite losses, the gradients of any of the samples may be at fault.
    finite = math.isfinite(loss)
    pairs = zip(batches, losses, strict=True)
    suspects = [batch for batch, value in pairs if finite or not math.isfinite(value)]
    ids = gather_object([str(i) for batch in suspects for i in batch.sample_ids])
    raise WorkError(
        f"Step {step}: loss {loss}, gradient norm {norm}: not finite, so training stops before "
        f"this step. What was saved before is whole. Samples of the step: {', '.join(ids[:20])}. "
        "Look at them, or lower --learning_rate."
    )

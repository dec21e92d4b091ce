"""The training loop: one optimizer step after another, on accelerate.

A step runs `gradient_accumulation_steps` micro-batches on each process. Its loss is the sum over
all answer tokens divided by their count over all processes and micro-batches, so two processes
compute what one with twice the batch computes.
"""

import math
import time
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tuninglab.config import TrainingConfig
from tuninglab.console import say
from tuninglab.data.loading import step_batches
from tuninglab.errors import WorkError
from tuninglab.run_folder import RunFolder
from tuninglab.training.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from tuninglab.training.hardware import peak_memory_mib, reset_peak_memory
from tuninglab.training.interrupt import raise_stopped, stop_signals
from tuninglab.training.log import TrainingLog
from tuninglab.training.optimizer import make_optimizer, make_schedule
from tuninglab.training.state import Progress, TrainState

INPUTS = ("input_ids", "attention_mask", "pixel_values", "labels")
# Of a decoder that reads a text of its own, what it reads is counted too.
MASKS = ("attention_mask", "decoder_attention_mask")
# With the scale this low, fp16 gradients overflow for another reason than the scale.
SMALLEST_SCALE = 1.0


def train(
    model: nn.Module,
    loader: DataLoader,
    config: TrainingConfig,
    run: RunFolder,
    accelerator: Accelerator,
    val_loader: DataLoader | None = None,
) -> Progress:
    """Train what requires gradients, in place; returns how far the run came.

    Args:
        model: takes a batch with labels and `num_items_in_batch`; its output has `loss`.
        loader: from `make_loader`, over the training samples.
        config: settings of the run.
        run: its folder, for metrics and checkpoints; a resumed one goes on from its checkpoint.
        accelerator: carries device, precision and processes.
        val_loader: from `make_loader`, for validation every `eval_steps` and at the end.

    Raises:
        WorkError: a loss or gradient is not finite, or the disk is full.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with the state saved.
    """
    state, total = _start(model, loader, config, run, accelerator)
    progress = state.progress
    with stop_signals() as stop, TrainingLog(total, progress.step) as log:
        begun = lap = time.perf_counter()
        for batches in step_batches(loader, total - progress.step):
            counts = count_step(batches, accelerator)
            outcome = _optimizer_step(state, batches, counts, config, accelerator, stop)
            state.sampler.advance()
            progress.note(outcome["loss"], counts, time.perf_counter() - begun)
            last = progress.step == total
            if last or _due(config.logging_steps, progress.step):
                line = _metrics_line(state, outcome, accelerator.device)
                run.append_metrics(line)
                log.step(line)
            if val_loader and (last or _due(config.eval_steps, progress.step)):
                line = validation_line(state, val_loader, accelerator)
                run.append_metrics(line)
                log.validation(line)
                progress.val_loss = line["val_loss"]
            # Validation and checkpoints are part of what a run costs; step_s leaves them out.
            lap = progress.spend(lap)
            progress.note_memory(peak_memory_mib(accelerator.device))
            if last or outcome["stop"] or _due(config.save_steps, progress.step):
                save_checkpoint(run.checkpoints, state, accelerator, config.keep_checkpoints)
            if outcome["stop"] and not last:
                raise_stopped(run.path, progress.step)
            begun = time.perf_counter()
        progress.spend(lap)
    accelerator.unwrap_model(state.wrapped, keep_fp32_wrapper=False)
    return progress


def _start(
    model: nn.Module,
    loader: DataLoader,
    config: TrainingConfig,
    run: RunFolder,
    accelerator: Accelerator,
) -> tuple[TrainState, int]:
    sampler: Any = loader.batch_sampler
    total = config.max_steps or config.epochs * sampler.steps_per_epoch
    gates = config.tuning_config.gate_lr_multiplier
    optimizer = make_optimizer(model, config.learning_rate, config.weight_decay, gates)
    schedule = make_schedule(optimizer, config.lr_scheduler, total, config.warmup_steps)
    # The schedule stays ours: accelerate would step it once a process.
    wrapped, prepared = accelerator.prepare(model, optimizer)
    state = TrainState(model, wrapped, prepared, schedule, sampler, Progress())
    # The same weights everywhere, but not the same dropout.
    set_seed(config.seed + accelerator.process_index)
    reset_peak_memory(accelerator.device)
    if run.resumed:
        checkpoint = newest_checkpoint(run.checkpoints)
        load_checkpoint(checkpoint, state, accelerator)
        run.cut_metrics(state.progress.step)
        say(f"Going on after step {state.progress.step} ({checkpoint}).")
    set_training_mode(model)
    return state, total


def set_training_mode(model: nn.Module) -> None:
    """Training mode for the parts that train something; frozen towers stay in eval mode.

    A frozen tower's dropout would only add noise to its features.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    model.train()
    for part in base.children():
        part.train(any(parameter.requires_grad for parameter in part.parameters()))


def count_step(batches: list[dict], accelerator: Accelerator) -> dict[str, int]:
    """Count what a step holds over all processes: `answer_tokens`, `tokens` and `samples`."""
    counts = torch.zeros(3, dtype=torch.long)
    for batch in batches:
        answers = batch["labels"] != -100
        # A row without labels only fills a place (MaskedRow).
        rows = answers.any(dim=1)
        tokens = torch.stack([batch[name][rows].sum() for name in MASKS if name in batch]).sum()
        counts += torch.stack([answers.sum(), tokens, rows.sum()])
    summed = _over_processes(counts.to(accelerator.device), accelerator)
    return dict(zip(("answer_tokens", "tokens", "samples"), summed.tolist(), strict=True))


def _optimizer_step(
    state: TrainState,
    batches: list[dict],
    counts: dict[str, int],
    config: TrainingConfig,
    accelerator: Accelerator,
    stop: list[int],
) -> dict[str, float]:
    """Gradients of all micro-batches, one clipping, one step.

    Returns `loss`, `grad_norm`, `learning_rate`, and `stop`: whether any process was signalled.

    Raises:
        WorkError: loss or gradients are not finite; the weights are still those before the step.
    """
    losses = []
    for number, batch in enumerate(batches, 1):
        # Processes exchange gradients once a step, with the last micro-batch.
        waiting = nullcontext() if number == len(batches) else accelerator.no_sync(state.wrapped)
        with waiting:
            loss = batch_loss(state.wrapped, batch, counts["answer_tokens"], accelerator)
            # DDP averages over processes; the loss is a share of a sum already.
            accelerator.backward(loss * accelerator.num_processes)
        losses.append(loss.detach().float())
    signalled = torch.tensor(float(bool(stop)), device=accelerator.device)
    sums = torch.stack([torch.stack(losses).sum(), signalled])
    total, stopping = (float(value) for value in _over_processes(sums, accelerator))
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    gradient_norm: Any = accelerator.clip_grad_norm_(trained, config.max_grad_norm or math.inf)
    norm = float(gradient_norm)
    if not math.isfinite(total) or not (math.isfinite(norm) or _scaler_adapts(accelerator)):
        _raise_not_finite(state.progress.step + 1, total, norm, batches, losses)
    rate = float(state.schedule.get_last_lr()[0])
    state.optimizer.step()
    if not accelerator.optimizer_step_was_skipped:
        state.schedule.step()
    state.optimizer.zero_grad()
    return {"loss": total, "grad_norm": norm, "learning_rate": rate, "stop": stopping}


def batch_loss(
    model: nn.Module, batch: dict, answer_tokens: int, accelerator: Accelerator
) -> Tensor:
    """Sum of the losses of a batch's answer tokens, divided by `answer_tokens`."""
    inputs = {name: batch[name].to(accelerator.device) for name in INPUTS if name in batch}
    count = {"num_items_in_batch": answer_tokens, "labels_only_logits": True}
    return model(**inputs, **count, use_cache=False).loss


def _scaler_adapts(accelerator: Accelerator) -> bool:
    # fp16: the scaler skips a step whose gradients overflow, and halves its scale.
    return accelerator.scaler is not None and accelerator.scaler.get_scale() > SMALLEST_SCALE


def _raise_not_finite(
    step: int, loss: float, norm: float, batches: list[dict], losses: list[Tensor]
) -> None:
    # With finite losses, the gradients of any of the samples may be at fault.
    finite = math.isfinite(loss)
    pairs = zip(batches, losses, strict=True)
    suspects = [batch for batch, value in pairs if finite or not math.isfinite(value)]
    ids = gather_object([str(i) for batch in suspects for i in batch["sample_ids"]])
    raise WorkError(
        f"Step {step}: loss {loss}, gradient norm {norm}: not finite, so training stops before "
        f"this step. What was saved before is whole. Samples of the step: {', '.join(ids[:20])}. "
        "Look at them, or lower --learning_rate."
    )


def _metrics_line(
    state: TrainState, outcome: dict[str, float], device: torch.device
) -> dict[str, Any]:
    window = state.progress.take_window()
    return {
        "step": state.progress.step,
        "epoch": _epoch(state),
        "loss": window["loss"],
        "learning_rate": outcome["learning_rate"],
        # Not finite where the fp16 scaler dealt with an overflow; JSON has no infinity.
        "grad_norm": outcome["grad_norm"] if math.isfinite(outcome["grad_norm"]) else None,
        "samples": state.progress.samples,
        "tokens": state.progress.tokens,
        "step_s": window["step_s"],
        "tokens_per_s": window["tokens_per_s"],
        "peak_memory_mib": round(peak_memory_mib(device), 1),
    }


def validation_line(
    state: TrainState, loader: DataLoader, accelerator: Accelerator
) -> dict[str, Any]:
    """A validation line of metrics.jsonl; the model is back in training mode afterwards."""
    loss = validation_loss(state.model, loader, accelerator)
    set_training_mode(state.model)
    return {"step": state.progress.step, "epoch": _epoch(state), "val_loss": loss}


@torch.no_grad()
def validation_loss(model: nn.Module, loader: DataLoader, accelerator: Accelerator) -> float:
    """Mean loss of the answer tokens over a data set; leaves the model in eval mode."""
    model.eval()
    # Apple's GPUs have no float64.
    exact = torch.float32 if accelerator.device.type == "mps" else torch.float64
    sums = torch.zeros(2, dtype=exact, device=accelerator.device)
    for batch in loader:
        with accelerator.autocast():
            loss = batch_loss(model, batch, 1, accelerator)
        sums += torch.stack([loss, (batch["labels"] != -100).sum().to(loss)]).to(sums)
    total, count = _over_processes(sums, accelerator).tolist()
    return total / count


def _over_processes(value: Tensor, accelerator: Accelerator) -> Tensor:
    summed: Any = accelerator.reduce(value, "sum")
    return summed


def _epoch(state: TrainState) -> float:
    return round(state.sampler.epoch + state.sampler.step / state.sampler.steps_per_epoch, 4)


def _due(interval: int | None, step: int) -> bool:
    return interval is not None and step % interval == 0

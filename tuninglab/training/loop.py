"""The training loop: one optimizer step after another, logged, validated and saved as it goes."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader

from tuninglab.config import TrainingConfig
from tuninglab.console import say
from tuninglab.data.batches import Batch
from tuninglab.data.loading import LostWorker, step_batches
from tuninglab.data.sampler import StepSampler
from tuninglab.run_folder import RunFolder, how_to_end
from tuninglab.threads import BusyWatch, Sleep
from tuninglab.training.best import (
    Measure,
    end_with_best,
    forget_lost_best,
    has_waited,
    note_validation,
)
from tuninglab.training.checkpoint import (
    Collect,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    step_of,
)
from tuninglab.training.hardware import peak_memory_mib, reset_peak_memory
from tuninglab.training.interrupt import raise_stopped, stop_signals
from tuninglab.training.log import TrainingLog
from tuninglab.training.optimizer import make_optimizer, make_schedule
from tuninglab.training.parallel import carried
from tuninglab.training.saved_state import DamagedCheckpoint
from tuninglab.training.state import Progress, TrainState
from tuninglab.training.step import Outcome, count_step, optimizer_step

# Takes each line of metrics: a file, the screen, a tracker.
Sink = Callable[[dict[str, Any]], None]

# Validates the model as it is: `val_loss`, and more whose names begin with `val_`. All processes
# must call it, and get the same. It may leave the model in eval mode.
Validate = Callable[[], dict[str, float]]


def train(
    model: nn.Module,
    loader: DataLoader,
    config: TrainingConfig,
    run: RunFolder,
    accelerator: Accelerator,
    validate: Validate | None = None,
    measure: Measure | None = None,
    sinks: Sequence[Sink] = (),
    collect: Collect | None = None,
) -> Progress:
    """Train what requires gradients, in place; returns how far the run came.

    Args:
        model: takes a batch with labels and `num_items_in_batch`; its output has `loss`.
        loader: from `make_loader`, over the training samples.
        config: settings of the run.
        run: its folder, for checkpoints; a resumed one goes on from its newest.
        accelerator: carries device, precision and processes.
        validate: for every `eval_steps` and the end; None: there is nothing to validate on.
        measure: chooses the validation as of which the model ends; None: as of the last step.
        sinks: take every line of metrics; the screen does besides.
        collect: makes of the model what writes more into a checkpoint.

    Raises:
        WorkError: a loss or gradient is not finite, or the disk is full.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with the state saved.
    """
    state = start(model, cast("StepSampler", loader.batch_sampler), config, accelerator)
    total = _go_on(state, run, accelerator, config.patience)
    progress, patience, keep = state.progress, config.patience, config.keep_checkpoints
    save = partial(save_checkpoint, run.checkpoints, state, accelerator, keep, collect)
    log = TrainingLog(total, progress.step)
    with stop_signals() as stop, log, _watch(config, accelerator) as watches:
        sinks = [*sinks, log.show, *watches]
        begun = lap = time.perf_counter()
        for batches in _steps(loader, total - progress.step, save, stop, run.path, accelerator):
            outcome = _made(state, batches, config.max_grad_norm, accelerator, stop, begun)
            last = progress.step == total
            if last or _due(config.logging_steps, progress.step):
                _tell(sinks, _metrics_line(state, outcome, accelerator.device))
            due = last or _due(config.eval_steps, progress.step)
            better = due and _validated(state, validate, measure, sinks)
            ended = last or has_waited(progress, patience)
            # Validation and checkpoints are part of what a run costs; step_s leaves them out.
            lap = progress.spend(lap)
            progress.note_memory(peak_memory_mib(accelerator.device))
            # After the lines above: a resumed run goes on with metrics as they were.
            if ended or better or outcome.stop or _due(config.save_steps, progress.step):
                save()
            if outcome.stop and not ended:
                raise_stopped(run.path, progress.step)
            if ended:
                break
            begun = time.perf_counter()
        progress.spend(lap)
    accelerator.unwrap_model(state.wrapped, keep_fp32_wrapper=False)
    end_with_best(state, run.checkpoints, measure, patience)
    return progress


def start(
    model: nn.Module, sampler: StepSampler, config: TrainingConfig, accelerator: Accelerator
) -> TrainState:
    """What training changes, before the first step: optimizer, schedule, position, generators."""
    total = total_steps(config, sampler)
    tuning = config.tuning_config
    rates = (tuning.gate_lr_multiplier, tuning.part_learning_rates)
    optimizer = make_optimizer(model, config.learning_rate, config.weight_decay, *rates)  # pyright: ignore
    if tuning.part_learning_rates:
        groups = optimizer.param_groups
        say("Learning rates: " + ", ".join(f"{g['name']} {g['lr']:g}" for g in groups))
    schedule = make_schedule(optimizer, config.lr_scheduler, total, config.warmup_steps)
    # The schedule stays ours: accelerate would step it once a process.
    wrapped, prepared = carried(model, optimizer, accelerator)
    # The same weights everywhere, but not the same dropout.
    set_seed((config.seed + accelerator.process_index) % 2**32)
    reset_peak_memory(accelerator.device)
    set_training_mode(model)
    return TrainState(model, wrapped, prepared, schedule, sampler, Progress(), total)


def total_steps(config: TrainingConfig, sampler: Any) -> int:
    """How many optimizer steps a run shall make, from decided settings and a `StepSampler`."""
    # Epochs of packed rows differ in steps.
    epochs: Any = config.epochs
    return config.max_steps or sum(sampler.steps_in(epoch) for epoch in range(epochs))


def _go_on(
    state: TrainState, run: RunFolder, accelerator: Accelerator, patience: int | None
) -> int:
    """Go on from the checkpoint of a resumed run; a new run stays at its beginning.

    Returns:
        After which step it ends; one that has stopped early ends where it stands.
    """
    if not run.resumed:
        return state.total_steps
    checkpoint = run.checkpoint or newest_checkpoint(run.checkpoints)
    while damage := _damage_in(checkpoint, state, accelerator):
        say(f"{damage} Looking for the one before it.")
        checkpoint = newest_checkpoint(run.checkpoints, before=checkpoint)
    progress = state.progress
    forget_lost_best(progress, run.checkpoints)
    # The steps after the checkpoint come again, and their lines with them.
    run.cut_metrics(progress.step, progress.step - progress.window_steps)
    say(f"Going on after step {progress.step} ({checkpoint}).")
    return progress.step if has_waited(progress, patience) else state.total_steps


def _damage_in(checkpoint: Path, state: TrainState, accelerator: Accelerator) -> str:
    """Load a checkpoint, unless one of the processes finds it damaged: how, in words."""
    damage = ""
    try:
        load_checkpoint(checkpoint, state, accelerator)
    except DamagedCheckpoint as error:
        damage = str(error)
    # One that went back alone would wait for the others for ever.
    return next(filter(None, gather_object([damage])), "")


def set_training_mode(model: nn.Module) -> None:
    """Training mode for the parts that train something; frozen towers stay in eval mode.

    A frozen tower's dropout would only add noise to its features.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    model.train()
    for part in base.children():
        part.train(any(parameter.requires_grad for parameter in part.parameters()))


def _steps(
    loader: DataLoader,
    steps: int,
    save: Callable[[], Path],
    stop: Sequence[int],
    run: Path,
    accelerator: Accelerator,
) -> Iterator[list[Batch]]:
    """The batches of steps; if they end because a worker did, the steps made so far are saved."""
    try:
        yield from step_batches(loader, steps)
    except LostWorker as error:
        # Processes save together: of several, one alone cannot.
        if accelerator.num_processes > 1:
            raise
        step = step_of(save())
        # A signal to the whole group reaches the workers too.
        if stop:
            raise_stopped(run, step)
        raise LostWorker(f"{error} After step {step} all is saved. {how_to_end(run)}") from error


def _metrics_line(state: TrainState, outcome: Outcome, device: torch.device) -> dict[str, Any]:
    window = state.progress.take_window()
    return {
        "step": state.progress.step,
        "epoch": _epoch(state),
        "loss": window["loss"],
        "learning_rate": outcome.learning_rate,
        # Not finite where the fp16 scaler dealt with an overflow; JSON has no infinity.
        "grad_norm": outcome.grad_norm if math.isfinite(outcome.grad_norm) else None,
        "samples": state.progress.samples,
        "tokens": state.progress.tokens,
        "step_s": window["step_s"],
        "tokens_per_s": window["tokens_per_s"],
        "peak_memory_mib": round(peak_memory_mib(device), 1),
    }


def _made(
    state: TrainState,
    batches: list[Batch],
    limit: float,
    accelerator: Accelerator,
    stop: Sequence[int],
    begun: float,
) -> Outcome:
    """Make an optimizer step on its micro-batches, whose loading began at `begun`, and count it."""
    counts = count_step(batches, accelerator)
    outcome = optimizer_step(state, batches, counts, limit, accelerator, stop)
    # Only now: a checkpoint holds the steps that were made, not those that were begun.
    state.sampler.advance()
    state.progress.note(outcome.loss, counts, time.perf_counter() - begun)
    return outcome


def _validated(
    state: TrainState, validate: Validate | None, measure: Measure | None, sinks: Sequence[Sink]
) -> bool:
    """Validate, if that can be, and tell it; whether it is better than every time before."""
    if validate is None:
        return False
    line = validation_line(state, validate)
    _tell(sinks, line)
    return note_validation(state.progress, line, measure)


def validation_line(state: TrainState, validate: Validate) -> dict[str, Any]:
    """A validation line of metrics.jsonl; the model is back in training mode afterwards."""
    values = validate()
    set_training_mode(state.model)
    return {"step": state.progress.step, "epoch": _epoch(state), **values}


@contextmanager
def _watch(config: TrainingConfig, accelerator: Accelerator) -> Iterator[list[Sink]]:
    """Looks for other work on the machine, where threads would wait for each other."""
    threads = torch.get_num_threads()
    if accelerator.device.type != "cpu" or threads == 1:
        yield []
        return
    with Sleep(threads) as sleep:
        watch = BusyWatch((threads + config.workers) * accelerator.num_processes)
        # Who asked for a number of threads is not told of another.
        yield [sleep, watch] if config.threads is None else [sleep]


def _tell(sinks: Sequence[Sink], line: dict[str, Any]) -> None:
    for sink in sinks:
        sink(line)


def _epoch(state: TrainState) -> float:
    return round(state.sampler.epoch + state.sampler.step / state.sampler.steps_per_epoch, 4)


def _due(interval: int | None, step: int) -> bool:
    return interval is not None and step % interval == 0

"""Checkpoints: everything an exact resume needs, in folders that are whole if they are there."""

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from tuninglab.console import say
from tuninglab.disk import finish_replacing, remove_folder, whole_folder
from tuninglab.errors import UserError
from tuninglab.models.parts import first_lines
from tuninglab.models.weights import put, spread_as, whole
from tuninglab.training.manifest import MANIFEST, damage_of, write_manifest
from tuninglab.training.saved_state import STATE_NAME, check_state, damaged, read_state
from tuninglab.training.state import TrainState

Collect = Callable[[Any], Callable[[Path], None]]

WEIGHTS_NAME = "trainable.safetensors"
STEP = re.compile(r"step-\d{1,15}")


def save_checkpoint(
    folder: Path,
    state: TrainState,
    accelerator: Accelerator,
    keep: int,
    collect: Collect | None = None,
) -> Path:
    """Write `folder/step-NNNNNN`; all processes must call it. Returns the new folder.

    Of all checkpoints in `folder` the newest `keep` stay, and that of the best validation. What
    `collect` returns of the model, on all processes, writes what else belongs into one, from the
    first.

    Raises:
        WorkError: the disk is full; earlier checkpoints stay whole.
    """
    # On all processes: weights that are sharded are put together.
    weights, optimizer = trainable_weights(state.model), whole_moments(state.optimizer)
    write_more = collect(state.model) if collect else None
    # Dropout differs between processes: each needs its own generators back.
    generators = gather_object([generator_state(accelerator.device)])
    path = checkpoint_of(folder, state.progress.step)
    if not accelerator.is_main_process:
        return path
    with whole_folder(path) as beside:
        save_file(weights, beside / WEIGHTS_NAME)
        saved = {
            "optimizer": optimizer,
            "schedule": state.schedule.state_dict(),
            "sampler": state.sampler.state_dict(),
            "progress": asdict(state.progress),
            "generators": generators,
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        }
        torch.save(saved, beside / STATE_NAME)
        if write_more:
            write_more(beside)
        write_manifest(beside)
    # Only now: killed at any moment, the run has one to go on from. What kills left goes too.
    # A later step is a damaged one, from before this run went back: it takes no one's place.
    whole = [p for p in checkpoints_in(folder) if _is_whole(p) and step_of(p) <= step_of(path)]
    sweep(folder)
    for old in (p for p in whole[:-keep] if step_of(p) != state.progress.best_step):
        remove_folder(old)
    return path


def newest_checkpoint(folder: Path, before: Path | None = None) -> Path:
    """Find the checkpoint of the highest step that is as it was written; says which are not.

    Args:
        folder: of the checkpoints.
        before: only those of lower steps than this one.

    Raises:
        UserError: there is none.
    """
    found = checkpoints_in(folder)
    for path in reversed([p for p in found if before is None or step_of(p) < step_of(before)]):
        damage = damage_of(path) if _is_whole(path) else "files are missing"
        if damage:
            say(f"The checkpoint {path} is damaged ({damage}): looking for the one before it.")
            continue
        if not (path / MANIFEST).exists():
            say(f"{path} has no {MANIFEST} (an earlier version wrote it): damage would not show.")
        return path
    raise UserError(
        f"--resume: there is no checkpoint in {folder} that is whole. Start over with --overwrite."
    )


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints by step, the newest last, whole or not."""
    # A step that is saved again replaces its checkpoint; a kill may have left it nameless.
    for beside in folder.glob(".step-*.writing"):
        finish_replacing(folder / beside.name[1:].removesuffix(".writing"))
    return sorted((p for p in folder.glob("step-*") if STEP.fullmatch(p.name)), key=step_of)


def sweep(folder: Path) -> None:
    """Delete what killed processes left beside the checkpoints; one process does, alone."""
    # What is whole among it has its place again.
    checkpoints_in(folder)
    for left in folder.glob(".*step-*"):
        shutil.rmtree(left, ignore_errors=True)


def checkpoint_of(folder: Path, step: int) -> Path:
    """Where among the checkpoints in `folder` that of a step is, or would be."""
    return folder / f"step-{step:06d}"


def step_of(path: Path) -> int:
    """After how many steps a checkpoint was written, by its name."""
    return int(path.name.removeprefix("step-"))


def _is_whole(path: Path) -> bool:
    return all((path / name).is_file() for name in (WEIGHTS_NAME, STATE_NAME))


def load_checkpoint(path: Path, state: TrainState, accelerator: Accelerator) -> None:
    """Put a run back to where `save_checkpoint` found it, in place.

    Nothing in a checkpoint depends on how many processes wrote it, and on their sharding, but the
    random generators: a process that had none draws anew from (seed, step, process).

    Raises:
        UserError: the checkpoint is damaged, or of another model or other data.
    """
    saved = read_state(path / STATE_NAME)
    try:
        weights = load_file(path / WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise damaged(path / WEIGHTS_NAME, first_lines(error)) from error
    # Another model first: its optimizer differs too.
    fitting(state.model, weights, path)
    check_state(saved, state, generator_state(accelerator.device), path / STATE_NAME)
    load_trainable(state.model, weights, path)
    _load_moments(state.optimizer, saved["optimizer"]["state"])
    state.schedule.last_epoch = saved["schedule"]["last_epoch"]
    state.schedule._step_count = saved["schedule"]["_step_count"]
    plans = zip(state.schedule.base_lrs, state.schedule.lr_lambdas, strict=True)
    rates = [peak * plan(state.schedule.last_epoch) for peak, plan in plans]
    for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    state.schedule._last_lr = rates
    state.sampler.load_state_dict(saved["sampler"])
    for name in asdict(state.progress).keys() & saved["progress"].keys():
        setattr(state.progress, name, saved["progress"][name])
    try:
        if accelerator.scaler and saved["scaler"]:
            accelerator.scaler.load_state_dict(saved["scaler"])
        _go_on_drawing(saved["generators"], state, accelerator)
    # Numbers that no generator has.
    except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
        raise damaged(path / STATE_NAME, first_lines(error)) from error


def _load_moments(optimizer: Optimizer, saved: dict[int, dict[str, Any]]) -> None:
    """Give an optimizer whole moments by the number of their parameter, its shares of them."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {name: spread_as(trained[number], value) for name, value in kept.items()}
        for number, kept in saved.items()
    }
    # Of settings, those of this start: what may not change was compared, the plan may be another.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _go_on_drawing(saved: list[Any], state: TrainState, accelerator: Accelerator) -> None:
    """Put back the generators of this process, or draw anew where it is one more than there were.

    Raises:
        ValueError, TypeError, KeyError, OverflowError, RuntimeError: a state that no generator has.
    """
    rank, ranks = accelerator.process_index, accelerator.num_processes
    if ranks != len(saved):
        say(
            f"The run had {len(saved)} process{'es' * (len(saved) > 1)}, now there "
            f"{'are' if ranks > 1 else 'is'} {ranks}: the rows of each step stay the same, dropout "
            "is another."
        )
    if rank < len(saved):
        set_generator_state(saved[rank], accelerator.device)
    else:
        drawn = np.random.SeedSequence((state.sampler.seed, state.progress.step, rank))
        set_seed(int(drawn.generate_state(1)[0]))


def whole_moments(optimizer: Optimizer) -> dict[str, Any]:
    """The state of an optimizer on the CPU, shards put together: all processes must ask."""
    saved = optimizer.state_dict()
    return saved | {"state": {number: whole(kept) for number, kept in saved["state"].items()}}


def trainable_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trainable parameters by name, on the CPU."""
    return whole({n: p for n, p in model.named_parameters() if p.requires_grad})


def load_trainable(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Set the trainable parameters from `trainable_weights`, read from `path`.

    Raises:
        UserError: the file holds other parameters than the model trains.
    """
    for name, parameter in fitting(model, weights, path).items():
        put(parameter, weights[name])


def fitting(
    model: nn.Module, weights: dict[str, torch.Tensor], path: Path
) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, if the weights read from `path` are theirs.

    Raises:
        UserError: the file holds other parameters than the model trains.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    differing = {n for n in weights.keys() & parameters if weights[n].shape != parameters[n].shape}
    differing |= weights.keys() ^ parameters.keys()
    if differing:
        raise UserError(
            f"{path} does not fit the model: {len(differing)} parameters differ, "
            f"e.g. {min(differing)}. Resume with the base model and tuning_config of the run."
        )
    return parameters


def generator_state(device: torch.device) -> dict[str, Any]:
    """State of all random generators that training draws from."""
    # What is read back are plain values and tensors, no numpy arrays.
    legacy: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, gauss = legacy
    state = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def set_generator_state(state: dict[str, Any], device: torch.device) -> None:
    """Put all random generators back; the counterpart of `generator_state`."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])

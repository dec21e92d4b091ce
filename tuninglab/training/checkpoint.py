"""Checkpoints: everything an exact resume needs, in folders that are whole if they are there."""

import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tuninglab.disk import finish_replacing, remove_folder, whole_folder
from tuninglab.errors import UserError
from tuninglab.models.weights import put, whole
from tuninglab.training.state import TrainState

Collect = Callable[[Any], Callable[[Path], None]]

WEIGHTS_NAME = "trainable.safetensors"
STATE_NAME = "state.pt"


def save_checkpoint(
    folder: Path,
    state: TrainState,
    accelerator: Accelerator,
    keep: int,
    collect: Collect | None = None,
) -> Path:
    """Write `folder/step-NNNNNN`; all processes must call it. Returns the new folder.

    Of all checkpoints in `folder` the newest `keep` stay. What `collect` returns of the model, on
    all processes, writes what else belongs into one, from the first.

    Raises:
        WorkError: the disk is full; earlier checkpoints stay whole.
    """
    # On all processes: weights that are sharded are put together.
    weights = trainable_weights(state.model)
    write_more = collect(state.model) if collect else None
    # Dropout differs between processes: each needs its own generators back.
    generators = gather_object([generator_state(accelerator.device)])
    path = folder / f"step-{state.progress.step:06d}"
    if not accelerator.is_main_process:
        return path
    with whole_folder(path) as beside:
        save_file(weights, beside / WEIGHTS_NAME)
        saved = {
            "optimizer": state.optimizer.state_dict(),
            "schedule": state.schedule.state_dict(),
            "sampler": state.sampler.state_dict(),
            "progress": asdict(state.progress),
            "generators": generators,
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        }
        torch.save(saved, beside / STATE_NAME)
        if write_more:
            write_more(beside)
    # Only now: killed at any moment, the run has one to go on from. What kills left goes too.
    for old in (*folder.glob(".step-*"), *_whole_checkpoints(folder)[:-keep]):
        remove_folder(old)
    return path


def newest_checkpoint(folder: Path) -> Path:
    """Find the checkpoint of the highest step.

    Raises:
        UserError: there is none.
    """
    whole = _whole_checkpoints(folder)
    if not whole:
        raise UserError(
            f"--resume: there is no checkpoint in {folder}. Start over with --overwrite."
        )
    return whole[-1]


def _whole_checkpoints(folder: Path) -> list[Path]:
    """By step, the newest last."""
    # A step that is saved again replaces its checkpoint; a kill may have left it nameless.
    for beside in folder.glob(".step-*.writing"):
        finish_replacing(folder / beside.name[1:].removesuffix(".writing"))
    names = (WEIGHTS_NAME, STATE_NAME)
    numbered = [p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdecimal()]
    whole = [p for p in numbered if all((p / name).is_file() for name in names)]
    return sorted(whole, key=lambda path: int(path.name.removeprefix("step-")))


def load_checkpoint(path: Path, state: TrainState, accelerator: Accelerator) -> None:
    """Put a run back to where `save_checkpoint` found it, in place.

    Raises:
        UserError: the checkpoint is damaged, or of another model, other data or another number of
            processes.
    """
    try:
        # weights_only: a checkpoint from elsewhere must not run code.
        saved = torch.load(path / STATE_NAME, map_location="cpu", weights_only=True)
        weights = load_file(path / WEIGHTS_NAME)
    # A file cut short is any of these, by where it was cut (torch 2.13).
    except (UnpicklingError, RuntimeError, EOFError, OSError, SafetensorError) as error:
        raise UserError(
            f"--resume: the checkpoint {path} is damaged. Delete it, and the run goes on from the "
            "one before."
        ) from error
    load_trainable(state.model, weights, path)
    ranks = len(saved["generators"])
    if ranks != accelerator.num_processes:
        raise UserError(
            f"--resume: the run had {ranks} processes, now there are {accelerator.num_processes}. "
            f"Start it with as many (torchrun --nproc_per_node={ranks})."
        )
    state.optimizer.load_state_dict(saved["optimizer"])
    state.schedule.load_state_dict(saved["schedule"])
    # Both bring back the rate of the old plan; with more --max_steps the new plan has another.
    plans = zip(state.schedule.base_lrs, state.schedule.lr_lambdas, strict=True)
    rates = [peak * plan(state.schedule.last_epoch) for peak, plan in plans]
    for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    state.schedule._last_lr = rates
    state.sampler.load_state_dict(saved["sampler"])
    if accelerator.scaler and saved["scaler"]:
        accelerator.scaler.load_state_dict(saved["scaler"])
    for name, value in saved["progress"].items():
        setattr(state.progress, name, value)
    set_generator_state(saved["generators"][accelerator.process_index], accelerator.device)


def trainable_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The trainable parameters by name, on the CPU."""
    return whole({n: p for n, p in model.named_parameters() if p.requires_grad})


def load_trainable(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Set the trainable parameters from `trainable_weights`, read from `path`.

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
    for name, parameter in parameters.items():
        put(parameter, weights[name])


def generator_state(device: torch.device) -> dict[str, Any]:
    """State of all random generators that training draws from."""
    # torch.load(weights_only=True) takes plain values and tensors, no numpy arrays.
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

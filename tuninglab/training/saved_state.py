"""The state in a checkpoint, which anybody may have written: read and checked before it is used."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tuninglab.errors import UserError
from tuninglab.models.formats.plain import DEEPEST
from tuninglab.models.formats.records import ForbiddenName, Foreign, TensorRecord
from tuninglab.models.formats.torch_file import TorchFile
from tuninglab.models.formats.unpickling import MOST_STEPS
from tuninglab.models.parts import first_lines
from tuninglab.training.state import TrainState
from tuninglab.untrusted import open_regular

STATE_NAME = "state.pt"
# AdamW's moments of a parameter; beside them it counts its steps.
MOMENTS = ("exp_avg", "exp_avg_sq")


class DamagedCheckpoint(UserError):
    """A checkpoint cannot be gone on from, the one before it perhaps."""


def damaged(path: Path, why: str) -> DamagedCheckpoint:
    """What to raise of a file of a checkpoint that cannot be gone on from."""
    return DamagedCheckpoint(
        f"--resume: the checkpoint {path.parent} is damaged ({path.name}: {why}), or of something "
        "else."
    )


def read_state(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote; nothing in it is run, and its tensors take no more than the file.

    Raises:
        DamagedCheckpoint: it cannot be read.
    """
    descriptor = open_regular(path, "--resume")
    try:
        saved = TorchFile(path, descriptor)
        content = _Values(saved, os.fstat(descriptor).st_size).of(saved.content)
    # Where bytes are changed it may be anything, from zipfile to the machine that reads pickles.
    except ForbiddenName as error:
        # Not damaged: DeepSpeed's and others' states hold classes of theirs.
        raise UserError(
            f"--resume: {path} was written by another program, or by none that is to be trusted: "
            f"it asks for {first_lines(error)}. It is left as it is. Go on with what wrote it, or "
            "start a new run with another --run_name."
        ) from error
    except Exception as error:
        raise damaged(path, first_lines(error)) from error
    finally:
        os.close(descriptor)
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}")
    return content


def spread_of(checkpoint: Path) -> tuple[int, int]:
    """How many rows a step of the run had when it was saved, and on how many processes.

    Raises:
        DamagedCheckpoint: it cannot be read.
    """
    path = checkpoint / STATE_NAME
    saved = read_state(path)
    form = {"sampler": {"rows_per_step": 1}, "generators": _Any}
    if problem := _differs(saved, form):
        raise damaged(path, problem)
    rows, generators = saved["sampler"]["rows_per_step"], saved["generators"]
    if rows < 1 or not isinstance(generators, list) or not generators:
        raise damaged(path, "it has no rows in a step, or no processes")
    return rows, len(generators)


class _Values:
    """Takes tensors out of a file, so that nothing of it stays mapped once it is deleted."""

    def __init__(self, saved: TorchFile, size: int):
        self._saved, self._bytes, self._items = saved, size, MOST_STEPS

    def of(self, value: Any, depth: int = 0) -> Any:
        """The same with tensors in the place of their records.

        Raises:
            ValueError: it is more, or deeper, than the file that torch writes of it.
            UserError: a tensor is not dense, or lies outside of the file.
        """
        tensor = None
        if isinstance(value, (TensorRecord, Foreign)):
            tensor = self._saved.tensor("a tensor", value)
            self._bytes -= tensor.nbytes
        self._items -= 1
        # Lists that share one another can have 10^10 values, and tensors as many bytes.
        if min(self._items, self._bytes) < 0 or depth > DEEPEST:
            raise ValueError("it holds more, or deeper, than torch writes")
        if tensor is not None:
            return tensor.clone()
        if isinstance(value, dict):
            return {key: self.of(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.of(item, depth + 1) for item in value)
        return value


def check_state(saved: Any, state: TrainState, generators: Any, path: Path) -> None:
    """Pass if a saved state has the form of the state that it is to become.

    Args:
        saved: from `read_state`.
        state: of the run as it begins.
        generators: the state of those of this process.
        path: of the file, for the message.

    Raises:
        DamagedCheckpoint: naming what is missing or of another form.
    """
    groups = [group["params"] for group in state.optimizer.state_dict()["param_groups"]]
    expected = {
        "optimizer": {"state": {}, "param_groups": [{"params": numbers} for numbers in groups]},
        "schedule": {"last_epoch": 0, "_step_count": 0},
        "sampler": state.sampler.state_dict(),
        "progress": {"step": 0, "window_steps": 0},
        "generators": _Any,
        "scaler": _Any,
    }
    # A run may go on on a machine with another device.
    of_all = {name: form for name, form in generators.items() if name != "device"}
    problem = _differs(saved, expected)
    if not problem and not isinstance(saved["generators"], list):
        problem = "generators is no list"
    for one in [] if problem else saved["generators"]:
        problem = problem or _differs(one, of_all, "generators")
    problem = problem or _wrong_moments(saved["optimizer"], groups, state)
    problem = problem or _wrong_numbers(saved, expected["sampler"])
    if problem:
        raise damaged(path, problem)


class _Any:
    """Stands in a form for what has none of its own."""


def _differs(value: Any, form: Any, where: str = "it") -> str:
    """Where a value lacks the form of another one, in words; empty if it has it."""
    if form is _Any:
        return ""
    if isinstance(form, Mapping):
        if not isinstance(value, Mapping):
            return f"{where} is no mapping"
        for name, part in form.items():
            if name not in value:
                return f"{where} lacks {name}"
            if problem := _differs(value[name], part, name):
                return problem
        return ""
    if isinstance(form, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(form):
            return f"{where} is no list of {len(form)}"
        problems = (_differs(*pair, where) for pair in zip(value, form, strict=True))
        return next(filter(None, problems), "")
    if isinstance(form, torch.Tensor):
        fits = isinstance(value, torch.Tensor) and value.layout == form.layout
        fits = fits and (value.shape, value.dtype) == (form.shape, form.dtype)
        return "" if fits else f"{where} is no {form.dtype} tensor of {tuple(form.shape)}"
    # Generators keep a second number of theirs, or None.
    number = form is None or isinstance(form, float)
    kinds = (int, float, type(None)) if number else type(form)
    return "" if isinstance(value, kinds) else f"{where} is no {type(form).__name__}"


def _wrong_moments(saved: Any, groups: list[list[int]], state: TrainState) -> str:
    if [group["params"] for group in saved["param_groups"]] != groups:
        return "the optimizer has other parameters"
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    for number, kept in saved["state"].items():
        if not isinstance(number, int) or not 0 <= number < len(trained):
            return "the optimizer has other parameters"
        # By its shape as a whole: a checkpoint holds no shards.
        shape, dtype = trained[number].shape, trained[number].dtype
        like = torch.empty(shape, dtype=dtype, device="meta")
        form = {**dict.fromkeys(MOMENTS, like), "step": torch.zeros(())}
        if problem := _differs(kept, form, "a moment of the optimizer"):
            return problem
    return ""


def _wrong_numbers(saved: Any, form: Mapping[str, Any]) -> str:
    sampler, progress = saved["sampler"], saved["progress"]
    # Of an order of its own, an epoch may have more or fewer entries than the data has rows.
    length = "entries" if "entries" in form else "length"
    if not all(sampler[name] > 0 for name in (length, "length", "rows_per_step")):
        return "its data is of no length"
    steps = -(-sampler[length] // sampler["rows_per_step"])
    if not 0 <= sampler["step"] < steps or sampler["epoch"] < 0:
        return f"step {sampler['step']} of epoch {sampler['epoch']} is beyond the data"
    counts = (progress["step"], progress["window_steps"], *saved["schedule"].values())
    if any(type(count) is int and count < 0 for count in counts):
        return "a number of steps is below 0"
    if not all(value is None or type(value) in (int, float) for value in progress.values()):
        return "its progress is no numbers"
    return ""

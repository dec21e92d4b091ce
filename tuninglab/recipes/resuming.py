"""What a resumed run must have in common with its start: settings, data, base, an end ahead."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from tuninglab.config.training import TrainingConfig
from tuninglab.config.yaml_file import file_named
from tuninglab.console import Choices, is_main_process, say
from tuninglab.data.sources import Source, Splits
from tuninglab.errors import UserError
from tuninglab.models.folder_files import WEIGHTS
from tuninglab.models.weights import is_finite
from tuninglab.progress import working
from tuninglab.run_folder import RunFolder
from tuninglab.training.checkpoint import newest_checkpoint, step_of
from tuninglab.training.saved_state import DamagedCheckpoint, spread_of
from tuninglab.untrusted import MIB, read_json, shown

Config = TypeVar("Config", bound=TrainingConfig)

FINGERPRINTS = "fingerprints.json"
# Of how data is told by content; another where the same data comes to another sha256.
FORM = "2"
DOT = re.compile(r"\.")


@contextmanager
def settings_named(config: TrainingConfig, run: RunFolder) -> Iterator[None]:
    """In mistakes of settings that a file names, the run's or that of --config, say which it is.

    Raises:
        UserError: as what is done inside.
    """
    try:
        with file_named(config):
            yield
    except UserError as error:
        if not run.resumed:
            raise
        raise UserError(f"{error}\nThe run names it in {run.path / 'config.yaml'}.") from error


def check_end(run: RunFolder, total_steps: int) -> bool:
    """Pass if the last step of a run does not lie behind the one that it has reached.

    Returns:
        Whether it lies ahead.

    Raises:
        UserError: it does.
    """
    reached = step_of(run.checkpoint) if run.checkpoint else 0
    if total_steps < reached:
        raise UserError(
            f"--resume: {run.path} has made {reached} steps, and --max_steps or --epochs ends it "
            f"after {total_steps}. Give --max_steps {reached} or more."
        )
    return total_steps > reached


def with_its_rows(config: Config, run: RunFolder, processes: int, choices: Choices) -> Config:
    """The settings of a resumed run with as many micro-batches as give its steps the same rows.

    Raises:
        UserError: no number does with so many processes, or all checkpoints are damaged.
    """
    if run.checkpoint is None:
        return config
    try:
        rows, before = spread_of(run.checkpoint)
    except DamagedCheckpoint as error:
        say(f"{error} Looking for the one before it.")
        run.checkpoint = newest_checkpoint(run.checkpoints, before=run.checkpoint)
        return with_its_rows(config, run, processes, choices)
    size: Any = config.batch_size  # decided when the run was started
    batches, rest = divmod(rows, size)
    if rest:
        # Told by the sampler, which compares all that a position in the data depends on.
        return config
    accumulation, rest = divmod(batches, processes)
    if rest:
        counts = [str(n) for n in range(1, batches + 1) if batches % n == 0]
        raise UserError(
            f"--resume: a step of {run.path} has {rows} rows, {batches} micro-batches of "
            f"--batch_size {size}. They cannot be shared out evenly among {processes} processes, "
            f"as each must have as many; {' or '.join(counts)} can (it had {before})."
        )
    if before != processes:
        value, why = f"{accumulation} a step", f"{rows} rows a step as on {before}"
        choices.add("gradient accumulation", value, f"{why} process{'es' * (before > 1)}")
    return replace(config, gradient_accumulation_steps=accumulation)


def fingerprints(run: RunFolder, splits: Splits, model: nn.Module) -> dict[str, str]:
    """What the run learns from and starts from, by content; a resumed run must have the same.

    From the main process; the others get none.

    Args:
        run: its folder.
        splits: all samples that the model can read.
        model: the base as it was loaded.

    Raises:
        UserError: the run was started with others, or a weight of the base is not finite.
    """
    if not is_main_process():
        return {}
    with working("looking whether data and base are as they were"):
        found = {
            "training data": content_of(splits.train),
            "validation data": content_of(splits.val),
            "base": weights_digest(model),
            "form": FORM,
        }
    path = run.path / FINGERPRINTS
    if not run.resumed:
        return found
    if not path.exists():
        say(f"There is no {path} (an earlier version ran): data and base are taken as they are.")
        return found
    saved = read_json(path, MIB, "fingerprints of the run")
    saved = saved if isinstance(saved, dict) else {}
    compared = found
    if "form" not in saved:
        say(f"{path} is of an earlier version, which saw data otherwise: this is taken as it is.")
        compared = {"base": found["base"]}
    others = [name for name, value in compared.items() if saved.get(name) != value]
    if others:
        raise UserError(
            f"--resume: {' and '.join(others)} changed since {run.path} was started; it would go "
            f"on as another run. Bring back what it was, or start a new one. (Where that is wanted "
            f"all the same, delete {path}.)"
        )
    return found


def content_of(samples: Source | Sequence[Any]) -> str:
    """A sha256 of samples by content; of what a task from Python draws, only how many there are."""
    return samples.content if isinstance(samples, Source) else f"{len(samples)} samples"


def weights_digest(model: nn.Module) -> str:
    """A sha256 over all weights and buffers of a model, with their names, formats and shapes.

    Raises:
        UserError: a weight is not finite: no step could be made with it.
    """
    # Among them may be masks of infinities.
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}

    def digest(item: tuple[str, torch.Tensor]) -> bytes:
        """The sha256 of one tensor with its name, format and shape; it must be finite."""
        name, tensor = item
        tensor = tensor.detach().cpu().contiguous()
        if name not in buffers and not is_finite(tensor):
            raise UserError(
                f"{_place_of(model, name)}: the weight {shown(name)} holds numbers that are not "
                "finite (nan or inf); nothing can be computed with it. Download or copy the model "
                "again, or take another save of it"
            )
        one = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        numbers: Any = tensor.flatten().view(torch.uint8).numpy()
        one.update(numbers)
        return one.digest()

    # hashlib lets go of Python's lock.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        parts = pool.map(digest, sorted(model.state_dict().items()))
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _place_of(model: nn.Module, weight: str) -> str:
    """What a weight was read from: the one file of the model or part that holds it, or its folder.

    A part that was read as a model of its own knows its place, and what was made of parts none.
    """
    parts = [model, *(model.get_submodule(weight[: dot.start()]) for dot in DOT.finditer(weight))]
    place = next(filter(None, (getattr(part, "name_or_path", "") for part in parts)), "the base")
    files = [path for path in Path(place).glob("*") if path.suffix in WEIGHTS]
    return str(files[0]) if len(files) == 1 else place

"""The best validation of a run: which it was, when to stop waiting for another, and going back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from tuninglab.console import say
from tuninglab.errors import WorkError
from tuninglab.training.checkpoint import WEIGHTS_NAME, checkpoint_of, load_trainable
from tuninglab.training.manifest import damage_of
from tuninglab.training.state import Progress, TrainState


class Measure(NamedTuple):
    """What makes a validation better than another.

    Attributes:
        name: for people and in report.json.
        key: of a validation line in metrics.jsonl.
        highest: whether more is better.
    """

    name: str
    key: str
    highest: bool


VAL_LOSS = Measure("val_loss", "val_loss", highest=False)


def note_validation(progress: Progress, line: Mapping[str, Any], measure: Measure | None) -> bool:
    """Keep what a validation showed; whether it is the best so far, of equal ones the first.

    Args:
        progress: how far the run has come; changed.
        line: of metrics.jsonl.
        measure: by which it may be the best; None: none is looked for.
    """
    progress.val_loss = line["val_loss"]
    if measure is None:
        return False
    value, best = line[measure.key], progress.best_value
    progress.last_value = value
    better = best is None or (value > best if measure.highest else value < best)
    if not better:
        progress.validations_since_best += 1
        return False
    progress.best_step, progress.best_value = progress.step, value
    progress.best_val_loss, progress.validations_since_best = line["val_loss"], 0
    return True


def has_waited(progress: Progress, patience: int | None) -> bool:
    """Whether as many validations as `patience` came after the best one; None waits for ever."""
    return patience is not None and progress.validations_since_best >= patience


def early_stop(
    progress: Progress, patience: int | None, planned_steps: int, measure: Measure
) -> dict[str, Any] | None:
    """After which `step`, and for what `reason`, a run stopped early; None: it did not."""
    if progress.step >= planned_steps or not has_waited(progress, patience):
        return None
    reason = (
        f"no {measure.name} better than {progress.best_value:.4g} (step {progress.best_step}) in "
        f"{progress.validations_since_best} validations in a row"
    )
    return {"step": progress.step, "reason": reason}


def end_with_best(
    state: TrainState, checkpoints: Path, measure: Measure | None, patience: int | None
) -> None:
    """Say how a run ended, and give the model the weights of the best validation, in place.

    Nothing happens where no best one was looked for.

    Raises:
        WorkError: their checkpoint was damaged meanwhile.
        UserError: it is of another model.
    """
    if measure is None:
        return
    planned = state.total_steps
    if stop := early_stop(state.progress, patience, planned, measure):
        say(
            f"Stopped early after step {stop['step']} of {planned}: {stop['reason']}. "
            "A larger --patience with --resume goes on."
        )
    _put_back_best(state, checkpoints, measure)


def forget_lost_best(progress: Progress, checkpoints: Path) -> None:
    """Forget, aloud, the best validation of a run that goes on if its checkpoint is gone.

    So it is where the newest checkpoint was damaged, and the one before names a best that had given
    way to the newest.
    """
    if progress.best_step is None:
        return
    path = checkpoint_of(checkpoints, progress.best_step)
    damage = damage_of(path) if (path / WEIGHTS_NAME).is_file() else "it is gone"
    if not damage:
        return
    say(f"--keep_best: the best checkpoint so far, {path}, cannot be used ({damage}): the best is")
    say(f"looked for among the validations after step {progress.step}.")
    progress.best_step = progress.best_value = progress.best_val_loss = None
    progress.validations_since_best = 0


def _put_back_best(state: TrainState, checkpoints: Path, measure: Measure) -> None:
    progress = state.progress
    if progress.best_step is None:
        return
    say(
        f"best: step {progress.best_step}, {measure.name} {progress.best_value:.4g} "
        f"(last: {progress.last_value:.4g})"
    )
    # The weights are there already; another process may not have finished writing them.
    if progress.best_step == progress.step:
        return
    path = checkpoint_of(checkpoints, progress.best_step)
    if damage := damage_of(path) if path.is_dir() else "it is gone":
        raise WorkError(
            f"The best checkpoint, {path}, cannot be used ({damage}), so the run cannot end with "
            f"it. The last one is in {checkpoints}, with its adapter/."
        )
    load_trainable(state.model, load_file(path / WEIGHTS_NAME), path)

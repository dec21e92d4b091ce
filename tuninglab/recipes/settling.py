"""How a run begins that may be there already: anew, further on, or not at all, its end being there.

`--resume auto` is for commands that are started again and again, by torchrun (`--max_restarts`) or
a queue. One process looks at the folder and decides; with several, the others do as it says: they
may start at different moments, and look while it already writes.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from tuninglab.adapters.shipped_base import check_shipped_base
from tuninglab.config import TrainingConfig
from tuninglab.config.yaml_file import read_config
from tuninglab.console import is_main_process, say
from tuninglab.errors import UserError
from tuninglab.run_folder import RunFolder
from tuninglab.run_folder.folder import ENDING
from tuninglab.run_folder.ownership import is_ours
from tuninglab.training.checkpoint import checkpoints_in, newest_checkpoint, sweep
from tuninglab.training.hardware import check_processes
from tuninglab.training.meeting import meet
from tuninglab.untrusted import MIB, read_json

Config = TypeVar("Config", bound=TrainingConfig)

# By which a run knows its end.
ENDS = ("epochs", "max_steps", "patience")
# What a report says at least.
FIGURES = {"train", "evaluation", "adapter_bytes"}


def gone_on_with(config: Config) -> tuple[Config, RunFolder]:
    """The settings and the folder of a run that goes on, and its newest checkpoint.

    Raises:
        UserError: there is nothing to go on from, or a setting may not change.
    """
    run = RunFolder.plan(config)
    config = run.resumed_config(config)
    run.hold()
    run.checkpoint = newest_checkpoint(run.checkpoints)
    check_shipped_base(run.checkpoint / "adapter")
    if is_main_process():
        sweep(run.checkpoints)
    return config, run


def settled(config: Config) -> tuple[Config, RunFolder]:
    """What `--resume auto` comes to, the same on all processes: settings and folder.

    The settings say of `resume` True or False: further on from the newest checkpoint, or anew; what
    was killed before its first checkpoint is started over. The folder says whether the run `ended`.

    Raises:
        UserError: the folder is no run's, another process writes into it, or its settings differ.
    """
    check_processes()
    return _told_to_all(_settled(config) if is_main_process() else None)


def _settled(config: Config) -> tuple[Config, RunFolder]:
    """What one process finds in the folder, which it holds from then on."""
    run = RunFolder(Path(config.output_dir) / str(config.run_name))
    if not run.path.exists() or (run.path.is_dir() and not any(run.path.iterdir())):
        return _started(config)
    if not run.path.is_dir() or not is_ours(run.path):
        raise UserError(
            f"--resume auto: {run.path} is no run folder of tuninglab, so it is left alone. "
            "Choose another --run_name."
        )
    # From here on nobody else changes what is seen.
    run.hold()
    going_on = replace(config, resume=True)
    # Of a run whose checkpoints somebody has deleted there is an adapter; it is not started over.
    if not checkpoints_in(run.checkpoints) and not run.adapter.exists():
        if (run.path / "config.yaml").is_file():
            config = run.resumed_config(going_on)
        say(f"{run.path} was stopped before its first checkpoint: it is started over.")
        return _started(replace(config, overwrite=True))
    if _has_ended(run, going_on):
        return going_on, replace(run, resumed=True, ended=True)
    return gone_on_with(going_on)


def _started(config: Config) -> tuple[Config, RunFolder]:
    config = replace(config, resume=False)
    config.check_best()
    return config, RunFolder.plan(config)


def _has_ended(run: RunFolder, config: TrainingConfig) -> bool:
    """Whether all that a run writes at its end is there, and this call sets it no further one."""
    # It goes before a run makes a step beyond its end, so it is never of an earlier one.
    if not all((run.path / name).is_file() for name in ENDING) or not run.adapter.is_dir():
        return False
    with suppress(UserError):
        report = read_json(run.path / ENDING[0], 64 * MIB, "report of the run")
        saved = read_config(run.path / "config.yaml", type(config))
        asked = config.going_on_from(saved)
        whole = isinstance(report, dict) and FIGURES <= report.keys()
        return whole and all(getattr(saved, name) == getattr(asked, name) for name in ENDS)
    return False


def _told_to_all(found: Any) -> Any:
    """On all processes what the first one found."""
    meet()
    held = [found]
    if PartialState().num_processes > 1:
        broadcast_object_list(held)
    return held[0]

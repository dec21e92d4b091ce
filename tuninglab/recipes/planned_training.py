"""What a run makes of its plan: two lines before it starts, its batch size, and how near it was.

No run stops because it could not be planned.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from tuninglab.config import TrainingConfig
from tuninglab.console import Choices, is_main_process, program, say
from tuninglab.errors import UserError, WorkError
from tuninglab.evaluation.task import Task
from tuninglab.recipes.defaults import decide
from tuninglab.recipes.planned_batch_size import largest_batch
from tuninglab.recipes.planned_data import PlannedData, measure_data
from tuninglab.recipes.planned_figures import figures_of
from tuninglab.recipes.planned_machine import machine_here
from tuninglab.recipes.planned_run import MIB, Models, Plan, plan_run
from tuninglab.recipes.recipe import Base, Foreseen
from tuninglab.reporting.plan_text import lines
from tuninglab.untrusted import shown

Result = TypeVar("Result")
# What models and data that nobody foresaw, run on shapes, were seen to raise.
FAILURES = (
    *(UserError, WorkError, ArithmeticError, AssertionError, AttributeError, LookupError),
    *(MemoryError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError),
)


def with_batch_size(
    config: TrainingConfig, task: Task, base: Base, accelerator: Accelerator, choices: Choices
) -> TrainingConfig:
    """The settings with `--batch_size auto` decided, by the plan on the main process.

    Args:
        config: of the run; all else is decided.
        task: settled.
        base: as it was loaded.
        accelerator: knows the device and the processes.
        choices: where it is said and kept.
    """

    def size(models: Models, data: PlannedData) -> int:
        machine = machine_here(accelerator.device, accelerator.num_processes)
        return largest_batch(config, data, machine, models, choices)

    found = _planned(size, config, task, base, None, base.model)
    if is_main_process() and found is None:
        # As without the flag: what the recipe says, or what the size of the base does.
        usual = replace(config, batch_size=type(config)().batch_size)
        found: Any = decide(usual, base.model.num_parameters(), 1, choices).batch_size
        if usual.batch_size is not None:
            choices.add("batch size", str(found), "the recipe's own")
    # All processes take as many rows, though each has memory of its own.
    return replace(config, batch_size=broadcast_object_list([found])[0])


def plan_training(
    config: TrainingConfig,
    task: Task,
    base: Base,
    answers: Sequence[int],
    tuned: Any,
    accelerator: Accelerator,
) -> Foreseen | None:
    """Say what a run will need, before it starts; None where it could not be planned.

    Args:
        config: of the run, all decided.
        task: settled.
        base: as it was loaded.
        answers: tokens whose rows train.
        tuned: the model, ready to train.
        accelerator: knows the device and the processes.
    """

    def plan(models: Models, data: PlannedData) -> Plan:
        machine = machine_here(accelerator.device, accelerator.num_processes)
        return plan_run(config, data, machine, models, quick=True)

    made = _planned(plan, config, task, base, answers, tuned)
    if made is None:
        return None
    for line in lines(figures_of(made, [], Choices(aloud=False))):
        say(line)
    if not made.fits:
        say(
            "Warning: it may be ended for lack of memory. What makes it fit: "
            f"{program()} plan, with the same flags."
        )
    times = made.times
    step_s, train_s = (times.step_s, times.train_s) if times else (None, None)
    return Foreseen(round(made.total / MIB, 1), step_s, train_s, made.batches.steps)


def _planned(
    work: Callable[[Models, PlannedData], Result],
    config: TrainingConfig,
    task: Task,
    base: Base,
    answers: Sequence[int] | None,
    loaded: Any,
) -> Result | None:
    """Work on models and data of a plan, on the main process; None where it failed, which is said.

    Nothing is drawn from the generator that the run draws from.
    """
    if not is_main_process():
        return None
    side = getattr(getattr(base.model.config, "vision_config", None), "image_size", None)
    try:
        with torch.random.fork_rng(devices=[]):
            models = Models(Choices(aloud=False), answers, loaded)
            return work(models, measure_data(task, base, side))
    except FAILURES as error:
        said = next(iter(str(error).splitlines()), "")
        say(f"Not planned: {type(error).__name__}: {shown(said)}")
        return None

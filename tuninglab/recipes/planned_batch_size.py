"""`--batch_size auto`: the most rows at a time that fit into memory, by the plan."""

from dataclasses import replace
from typing import Any

from tuninglab.config import TrainingConfig
from tuninglab.console import Choices
from tuninglab.recipes.defaults import BATCH_SIZES
from tuninglab.recipes.planned_data import PlannedData
from tuninglab.recipes.planned_machine import Machine
from tuninglab.recipes.planned_run import MEMORY_ERROR, MIB, Models, Plan, plan_run
from tuninglab.recipes.row_orders import train_order

# A run of fewer steps learns little, however much fits.
FEWEST_STEPS = 20
# Of its size, as near as the largest is looked for.
NEAR = 16


def largest_batch(
    config: TrainingConfig, data: PlannedData, machine: Machine, models: Models, choices: Choices
) -> int:
    """The most rows at a time that fit, with what a plan may err by left free; says why.

    Args:
        config: settings of the run, the others all decided.
        data: what it learns from.
        machine: that it shall fit.
        models: without weights, those that were made so far.
        choices: where it is said and kept.
    """
    room = machine.available / (1 + MEMORY_ERROR)
    most = _most(config, data, machine)
    low, high = 0, most
    size, found, bisect = min(BATCH_SIZES[0], high), None, False
    while True:
        plan = plan_run(replace(config, batch_size=size), data, machine, models, quick=True)
        if plan.needed <= room:
            low, found = size, plan
        else:
            high = max(low, size - 1)
        if high - low <= low // NEAR:
            break
        # Memory grows about as rows do; every other time the middle, however it grows.
        size = (low + high + 1) // 2 if bisect else _foreseen(plan, size, room)
        size, bisect = min(high, max(low + 1, size)), not bisect
    if found is None:
        why = f"even one row needs more than the {room / MIB:,.0f} MiB that may be taken"
    elif low == most:
        why = f"more would leave fewer than {FEWEST_STEPS} steps; it fits"
    else:
        why = (
            f"the plan needs {found.needed / MIB:,.0f} MiB of {machine.available / MIB:,.0f}, and "
            f"{MEMORY_ERROR:.0%} stay free"
        )
    chosen = max(1, low)
    choices.add("batch size", str(chosen), f"--batch_size auto: {why}")
    return chosen


def _most(config: TrainingConfig, data: PlannedData, machine: Machine) -> int:
    # By what trains together: packed rows are fewer than records. No order has more or less rows
    # for the size that is looked for.
    single, quiet = replace(config, batch_size=1), Choices(aloud=False)
    order = train_order(data.splits.train, single, data.base, machine.processes, quiet)
    entries, epochs = order.count(config.seed, 0), config.epochs or 1
    together = machine.processes * config.gradient_accumulation_steps
    steps = 1 if config.max_steps else FEWEST_STEPS / epochs
    return max(1, int(entries / steps / together))


def _foreseen(plan: Plan, size: int, room: float) -> int:
    """Rows that would fit if each took as much as in this plan."""
    fixed: Any = sum(plan.held.values())
    return int((room - fixed) / max(1.0, (plan.needed - fixed) / size))

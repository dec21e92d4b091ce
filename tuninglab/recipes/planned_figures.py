"""The figures of a plan: what `plan --json` prints, and the error of one that does not fit."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.inspection.cost import Shape
from tuninglab.recipes.planned_changes import Suggestion
from tuninglab.recipes.planned_run import MEMORY_ERROR, MIB, TIME_ERROR, Plan


def figures_of(plan: Plan, suggestions: Sequence[Suggestion], choices: Choices) -> dict[str, Any]:
    """What a plan came to, for `--json`.

    Args:
        plan: of the run.
        suggestions: what makes it fit.
        choices: that the run would make.
    """
    speed, times = plan.machine.speed, plan.times
    spread = speed.spread if speed is not None else 0.0
    return {
        "peak_memory_mib": {"total": _mib(plan.total), **_parts(plan)},
        "available_mib": _mib(plan.machine.available),
        "needed_mib": _mib(plan.needed),
        "fits": plan.fits,
        "sent_mib": _mib(plan.sent) if plan.machine.processes > 1 else None,
        "step_s": _seconds(times and times.step_s),
        "train_s": _seconds(times and times.train_s),
        "wall_s": _seconds(times and times.wall_s),
        "suggestions": [_suggestion(one) for one in suggestions],
        "phases": {name: _mib(size) for name, size in plan.phases.items()},
        "uncertainty": {"memory": MEMORY_ERROR, "time": round(max(TIME_ERROR, spread), 2)},
        "no_time": plan.machine.why or None,
        "steps": plan.batches.steps,
        "largest_batches": [_shape(shape) for shape in plan.batches.largest],
        "mean_batch": _shape(plan.batches.mean),
        "device": {
            "kind": plan.machine.device,
            "name": plan.machine.name,
            "processes": plan.machine.processes,
            "speed": None if speed is None else asdict(speed),
        },
        "note": plan.note.strip() or None,
        "choices": choices.made,
    }


def too_large(figures: dict[str, Any]) -> UserError:
    """That a run does not fit, and the change that makes it fit for the least."""
    said = (
        f"It does not fit: {figures['needed_mib']:,.0f} MiB are needed, "
        f"{figures['available_mib']:,.0f} MiB are there."
    )
    fitting = [one for one in figures["suggestions"] if one["fits"]]
    if fitting:
        return UserError(f"{said} Add {fitting[0]['flags']}")
    least = figures["suggestions"][0] if figures["suggestions"] else None
    if least is None:
        return UserError(f"{said} Nothing makes it smaller: take a larger machine.")
    return UserError(
        f"{said} The least that was found needs {least['needed_mib']:,.0f} MiB, with "
        f"{least['flags']}: take a larger machine or a smaller model."
    )


def _suggestion(made: Suggestion) -> dict[str, Any]:
    plan = made.plan
    return {
        "flags": " ".join(made.flags),
        "peak_memory_mib": _mib(plan.total),
        "step_s": _seconds(plan.times and plan.times.step_s),
        "needed_mib": _mib(plan.needed),
        "fits": plan.fits,
        "price": "; ".join(filter(None, made.prices)) or None,
    }


def _parts(plan: Plan) -> dict[str, float]:
    """The parts of the peak, the largest first; those that round to nothing are left out."""
    sizes = sorted(plan.parts.items(), key=lambda part: -part[1])
    return {name: _mib(size) for name, size in sizes if _mib(size)}


def _shape(shape: Shape) -> dict[str, int]:
    return shape._asdict()


def _mib(size: float) -> float:
    return round(size / MIB, 1)


def _seconds(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.4g}")

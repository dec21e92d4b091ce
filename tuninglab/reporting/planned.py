"""What a run was planned to cost, beside what it did."""

from statistics import median
from typing import Any

from tuninglab.reporting.curves import Metrics, series
from tuninglab.reporting.tables import mapping, number, size, step_time


def planned_rows(figures: dict[str, Any], metrics: Metrics) -> list[dict[str, str]]:
    """Peak memory and the time of a step, planned and measured; none if there was no plan.

    Args:
        figures: of report.json; an earlier version's has no `plan`.
        metrics: the lines of metrics.jsonl.
    """
    plan, train = mapping(figures.get("plan")), mapping(figures.get("train"))
    times = [seconds for _, seconds in series(metrics, "step_s")]
    memory, step = number(plan.get("peak_memory_mib")), number(plan.get("step_s"))
    used = number(train.get("peak_memory_mib"))
    rows = []
    if memory is not None:
        rows.append(_row("peak memory", memory, used, lambda mib: size(mib * 2**20)))
    if step is not None:
        # The first steps of a run are slower: threads start, kernels are chosen.
        rows.append(_row("time of a step", step, median(times) if times else None, step_time))
    return rows


def _row(what: str, planned: float, measured: float | None, said: Any) -> dict[str, str]:
    row = {"": what, "planned": said(planned), "measured": "–", "planned is": "–"}
    if measured is None:
        return row
    row["measured"] = said(measured)
    if measured > 0:
        apart = planned / measured - 1
        word = "too much" if apart > 0 else "too little"
        row["planned is"] = "right" if abs(apart) < 0.005 else f"{abs(apart):.0%} {word}"
    return row

"""How far a run is that has not ended: whether it runs, what it has come to, how long it takes."""

from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from tuninglab.progress import duration
from tuninglab.reporting.curves import Metrics, series
from tuninglab.reporting.tables import number
from tuninglab.run_folder import how_to_end
from tuninglab.run_folder.lock import writer_of

# Steps whose times tell how long those to come will take.
RECENT = 50


class Standing(NamedTuple):
    """Where a run stands.

    Attributes:
        state: "ended" with a report; "running"; "stopped", to be gone on with; "died", which is the
            same of a process that was killed; "unseen", where another machine may be at it.
        step: the last that was logged; 0 if none was.
        total: after which it ends; None where that cannot be foreseen.
        left_s: what is left of a run that goes on, in seconds; None where that is not known.
        advice: how to end one that has not ended and does not run; else "".
    """

    state: Literal["ended", "running", "stopped", "died", "unseen"]
    step: int = 0
    total: int | None = None
    left_s: float | None = None
    advice: str = ""

    @property
    def goes_on(self) -> bool:
        """Whether more will come."""
        return self.state in ("running", "unseen")

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        step = f"step {self.step:,}{of}" if self.step else "no step yet"
        left = "" if self.left_s is None else f", about {duration(self.left_s)} left"
        match self.state:
            case "ended":
                return "It has ended."
            case "running":
                return f"It runs: {step}{left}."
            case "unseen":
                return f"It may run on another machine, which cannot be seen from here: {step}."
            case "died":
                what = "The process that ran it is gone (killed, or its machine went down)"
                return f"It has not ended. {what}: {step}. {self.advice}"
        return f"It has not ended and does not run: {step}. {self.advice}"


def standing(
    run_dir: Path, final: dict[str, Any] | None, metrics: Metrics, settings: dict[str, Any]
) -> Standing:
    """Where a run stands.

    Args:
        run_dir: the run folder.
        final: what report.json holds; None if there is none.
        metrics: as far as they are written.
        settings: of its config.yaml.

    Raises:
        UserError: a file that says how to end it is damaged.
    """
    steps = [step for step, _ in series(metrics, "loss")]
    step = int(steps[-1]) if steps else 0
    reported = number(_train(final).get("steps")) if final is not None else None
    # A report may be of an earlier end: the run was told to go on.
    if final is not None and (reported is None or step <= reported):
        return Standing("ended", step, step)
    total = _total(metrics, settings)
    match writer_of(run_dir):
        case "runs":
            return Standing("running", step, total, _left_s(metrics, step, total))
        case "unseen":
            return Standing("unseen", step, total)
        case "ended":
            return Standing("died", step, total, None, how_to_end(run_dir))
    return Standing("stopped", step, total, None, how_to_end(run_dir))


def figures_so_far(
    run_dir: Path,
    stands: Standing,
    metrics: Metrics,
    settings: dict[str, Any],
    trainable: list[dict[str, Any]],
) -> dict[str, Any]:
    """What can be said of a run that has not ended, in the words of report.json.

    Args:
        run_dir: the run folder.
        stands: where it stands.
        metrics: as far as they are written.
        settings: of its config.yaml.
        trainable: the rows of its trainable.json.
    """
    loss, validation = series(metrics, "loss"), series(metrics, "val_loss")
    counts = [number(row.get("parameters")) for row in trainable]
    last = {key: value for entry in metrics for key, value in entry.items()}
    train = {
        "steps": stands.step,
        "samples": last.get("samples"),
        "tokens": last.get("tokens"),
        "first_loss": loss[0][1] if loss else None,
        "last_loss": loss[-1][1] if loss else None,
        "tokens_per_s": number(last.get("tokens_per_s")),
        "peak_memory_mib": number(last.get("peak_memory_mib")),
        "trainable_parameters": round(sum(c for c in counts if c is not None)) or None,
    }
    losses = [{"val_loss": value} for _, value in validation]
    before = {"before": losses[0], "latest": losses[-1]} if losses else {}
    return {
        "run_name": run_dir.absolute().name,
        "state": stands.state,
        "base": settings.get("model"),
        "precision": settings.get("precision"),
        "quantization": settings.get("quantization"),
        "planned_steps": stands.total,
        "left_s": stands.left_s,
        "train": {key: value for key, value in train.items() if value is not None},
        "evaluation": before,
    }


def _train(final: dict[str, Any] | None) -> dict[str, Any]:
    train = (final or {}).get("train")
    return train if isinstance(train, dict) else {}


def _total(metrics: Metrics, settings: dict[str, Any]) -> int | None:
    """After which step the run ends, if nothing stops it before."""
    most = number(settings.get("max_steps"))
    if most is not None:
        return round(most)
    epochs = number(settings.get("epochs"))
    places = [(step, part) for step, part in series(metrics, "epoch") if step > 0 and part > 0]
    if epochs is None or not places:
        return None
    # An epoch is told to four places: the later the step, the better is known how many it has.
    step, part = places[-1]
    return max(round(epochs * step / part), round(step))


def _left_s(metrics: Metrics, step: int, total: int | None) -> float | None:
    times = [seconds for _, seconds in series(metrics, "step_s")[-RECENT:]]
    return (total - step) * median(times) if total is not None and times else None

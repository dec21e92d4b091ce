"""The report of a run: loss.png and report.html, written from the files of its folder alone."""

import json
import os
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from tuninglab.config import ReportConfig
from tuninglab.disk import whole_file, write_whole
from tuninglab.errors import UserError
from tuninglab.reporting.page import page
from tuninglab.reporting.run_evaluations import evaluations_of
from tuninglab.reporting.tables import mapping, number
from tuninglab.run_folder import elsewhere, how_to_end, read_starts
from tuninglab.run_folder.folder import MOST_METRICS
from tuninglab.untrusted import MIB, read_json, read_text

Metrics = list[dict[str, Any]]

# Steps averaged into the thick line: about 30 points remain, whatever the run's length.
SMOOTHED_POINTS = 30
# The loss gets a logarithmic axis where the largest is more than so many times the smallest.
LOG_FROM = 20
# A damaged file may hold any number.
DRAWN = 1e30
# Reading YAML takes 10 s a MiB.
LARGEST, LARGEST_YAML = 64 * MIB, MIB // 4
OF_RUN = "file of the run"


def rewrite(config: ReportConfig) -> tuple[str, dict[str, Any]]:
    """Write the report of a run anew; returns where the page is, and the figures.

    Raises:
        UserError: there is no such run, or a file in it is damaged.
    """
    # Figures come after the page, so that a broken folder prints nothing on standard output.
    return str(write_report(config.run)), read_figures(config.run)


def write_report(run_dir: str | Path) -> Path:
    """Write `loss.png` and `report.html` of a run folder; returns the page's path.

    The page is one self-contained file: pictures and curves are inside it. The same folder gives
    the same page, byte for byte.

    Raises:
        UserError: the folder is no run folder, the run has not ended, or a file in it is broken.
        WorkError: the files cannot be written.
    """
    run_dir = Path(run_dir)
    figures = read_figures(run_dir)
    metrics = read_metrics(run_dir)
    # Asked before drawing: a run folder on a read-only share can be read, not reported into.
    if not os.access(run_dir, os.W_OK):
        raise UserError(f"{run_dir} cannot be written. Change its permissions, or copy it.")
    curves = run_dir / "loss.png"
    draw_curves(metrics, curves)
    path = run_dir / "report.html"
    content = page(
        run_dir,
        figures,
        metrics,
        settings=_read_yaml(run_dir / "config.yaml"),
        starts=read_starts(run_dir),
        cards=_read_rows(run_dir / "answers.json"),
        trainable=_read_rows(run_dir / "trainable.json"),
        curves=curves,
        evaluations=evaluations_of(run_dir),
    )
    write_whole(path, content)
    return path


def read_figures(run_dir: str | Path) -> dict[str, Any]:
    """Read report.json of a run folder.

    Raises:
        UserError: there is no such folder or file, or it is broken.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        hint = elsewhere(run_dir) or "Give a run folder, e.g. runs/demo."
        raise UserError(f"{run_dir}: no such folder. {hint}")
    path = run_dir / "report.json"
    if path.exists():
        figures = _read_json(path)
        if not isinstance(figures, dict):
            raise _broken(path, f"holds a {type(figures).__name__}, expected an object")
        return figures
    # config.yaml is the first file of a run, report.json the last.
    if (run_dir / "config.yaml").exists():
        raise UserError(f"{run_dir}: no report.json, the run has not ended. {how_to_end(run_dir)}")
    raise UserError(f"{run_dir}: not a run folder (no config.yaml, no report.json). Name another.")


def read_metrics(run_dir: str | Path) -> Metrics:
    """Read the logged steps of a run, oldest first; none if there is no metrics.jsonl.

    Raises:
        UserError: a line is no JSON object.
    """
    path = Path(run_dir) / "metrics.jsonl"
    metrics = []
    for index, line in enumerate(_lines(path), 1):
        try:
            entry = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            raise _broken(path, f"line {index} is not JSON") from error
        if not isinstance(entry, dict):
            raise _broken(path, f"line {index} is not a JSON object")
        metrics.append(entry)
    return metrics


def draw_curves(metrics: Metrics, path: Path) -> None:
    """Draw training and validation loss, and the learning rate, over the steps as a PNG."""
    # Not pyplot: it would pick a display and keep figures alive.
    from matplotlib.figure import Figure

    # Loss is what one looks at; the schedule only explains its bends.
    figure = Figure(figsize=(9, 3.4), dpi=120, layout="constrained")
    loss_axes, rate_axes = figure.subplots(1, 2, width_ratios=[2, 1])
    steps, losses = _series(metrics, "loss")
    # Single steps stay visible, pale: a smooth line alone hides spikes.
    loss_axes.plot(steps, losses, color="#b9c7d6", linewidth=1, label="training")
    width = max(1, len(losses) // SMOOTHED_POINTS)
    if width > 1:
        # Trailing mean: a centred one would know the future at every point.
        smooth = [fmean(losses[max(0, i - width + 1) : i + 1]) for i in range(len(losses))]
        loss_axes.plot(steps, smooth, color="#1f5f99", label=f"mean of {width} values")
    if any("val_loss" in entry for entry in metrics):
        marks = _series(metrics, "val_loss")
        loss_axes.plot(*marks, color="#b3541e", marker="o", label="validation")
    values = [*losses, *_series(metrics, "val_loss")[1]]
    # On an even axis a fall from 7 to 0.03 is a cliff and then a flat line.
    if values and min(values) > 0 and max(values) > LOG_FROM * min(values):
        loss_axes.set_yscale("log")
        loss_axes.yaxis.set_major_formatter("{x:g}")
    loss_axes.set(xlabel="step", ylabel="loss (nats per answer token)", title="Loss")
    rate_axes.plot(*_series(metrics, "learning_rate"), color="#1f5f99")
    rate_axes.set(xlabel="step", title="Learning rate")
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    if losses:
        loss_axes.legend(frameon=False)
    for axes in (loss_axes, rate_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    # Without the Software entry the file does not change with matplotlib's version string.
    with whole_file(path) as beside:
        figure.savefig(beside, format="png", metadata={"Software": None})


def _lines(path: Path) -> list[str]:
    return read_text(path, MOST_METRICS, OF_RUN).splitlines() if path.exists() else []


def _series(metrics: Metrics, key: str) -> tuple[list[float], list[float]]:
    # Validation lines have no `loss`, training lines no `val_loss`: each curve picks its own.
    points = [(number(entry.get("step")), number(entry.get(key))) for entry in metrics]
    # Beyond, the axes of a drawing have no numbers.
    known = [(s, v) for s, v in points if s is not None and v is not None]
    known = [(s, v) for s, v in known if max(abs(s), abs(v)) < DRAWN]
    return [step for step, _ in known], [value for _, value in known]


def _read_json(path: Path) -> Any:
    return read_json(path, LARGEST, OF_RUN)


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path, LARGEST_YAML, OF_RUN) if path.exists() else ""
    try:
        # What runs write has no references; nested, a few stand for more than memory holds.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise _broken(path, "holds references (*)")
        return mapping(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _broken(path, "is not YAML") from error


def _read_rows(path: Path) -> list[dict[str, Any]]:
    # Only report.json must be there; a page is made of what there is.
    rows = _read_json(path) if path.exists() else []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _broken(path, "is not a list of objects")
    return rows


def _broken(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: {problem}. The run folder is damaged; restore it or run again.")

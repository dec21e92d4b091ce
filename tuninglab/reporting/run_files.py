"""The files of a run folder as its reports read them, with what is damaged told by name."""

import json
from pathlib import Path
from typing import Any

import yaml

from tuninglab.errors import UserError
from tuninglab.reporting.curves import Metrics
from tuninglab.reporting.tables import mapping
from tuninglab.run_folder import elsewhere
from tuninglab.run_folder.folder import MOST_METRICS
from tuninglab.untrusted import MIB, read_json, read_text

# Reading YAML takes 10 s a MiB.
LARGEST, LARGEST_YAML = 64 * MIB, MIB // 4
OF_RUN = "file of the run"


def check_run(run_dir: Path) -> None:
    """Pass if a folder is that of a run.

    Raises:
        UserError: there is no such folder, or it is another.
    """
    if not run_dir.is_dir():
        hint = elsewhere(run_dir) or "Give a run folder, e.g. runs/demo."
        raise UserError(f"{run_dir}: no such folder. {hint}")
    # config.yaml is the first file of a run, report.json the last.
    if not any((run_dir / name).exists() for name in ("config.yaml", "report.json")):
        raise UserError(
            f"{run_dir}: not a run folder (no config.yaml, no report.json). Name another."
        )


def read_final(run_dir: Path) -> dict[str, Any] | None:
    """What report.json holds; None if there is none, as the run has not ended.

    Raises:
        UserError: there is no such run, or the file is broken.
    """
    check_run(run_dir)
    path = run_dir / "report.json"
    if not path.exists():
        return None
    figures = read_json(path, LARGEST, OF_RUN)
    if not isinstance(figures, dict):
        raise broken(path, f"holds a {type(figures).__name__}, expected an object")
    return figures


def read_metrics(run_dir: Path, growing: bool = False) -> Metrics:
    """The logged steps of a run, oldest first; none if there is no metrics.jsonl.

    Args:
        run_dir: the run folder.
        growing: whether a process may be writing the last line, of which half is then passed over.

    Raises:
        UserError: a line is no JSON object.
    """
    path = run_dir / "metrics.jsonl"
    text = read_text(path, MOST_METRICS, OF_RUN) if path.exists() else ""
    lines = (text[: text.rfind("\n") + 1] if growing else text).splitlines()
    metrics = []
    for index, line in enumerate(lines, 1):
        try:
            entry = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            raise broken(path, f"line {index} is not JSON") from error
        if not isinstance(entry, dict):
            raise broken(path, f"line {index} is not a JSON object")
        metrics.append(entry)
    return metrics


def read_settings(run_dir: Path) -> dict[str, Any]:
    """What config.yaml holds; {} if there is none.

    Raises:
        UserError: it is no YAML, or stands for more than it says.
    """
    path = run_dir / "config.yaml"
    text = read_text(path, LARGEST_YAML, OF_RUN) if path.exists() else ""
    try:
        # What runs write has no references; nested, a few stand for more than memory holds.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise broken(path, "holds references (*)")
        return mapping(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise broken(path, "is not YAML") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects; none if there is no such file: a page is made of what there is.

    Raises:
        UserError: it is something else.
    """
    rows = read_json(path, LARGEST, OF_RUN) if path.exists() else []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise broken(path, "is not a list of objects")
    return rows


def broken(path: Path, problem: str) -> UserError:
    """That a file of a run is damaged, and what to do."""
    return UserError(f"{path}: {problem}. The run folder is damaged; restore it or run again.")

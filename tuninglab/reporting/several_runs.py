"""Several runs side by side: settings that differ, what they learned from, cost and scores."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tuninglab.console import say
from tuninglab.errors import UserError
from tuninglab.reporting.curves import Chart, Line, Metrics, chart, series, smoothed
from tuninglab.reporting.paired_scores import paired_scores
from tuninglab.reporting.run_files import read_final, read_metrics, read_rows, read_settings
from tuninglab.reporting.so_far import Standing, figures_so_far, standing
from tuninglab.reporting.tables import mapping, number
from tuninglab.run_folder import read_starts
from tuninglab.untrusted import MIB, read_json

# What names a run and says nothing of it.
NAMES = {"run_name", "output_dir"}
PRINTS = ("training data", "validation data", "base")
OF_MACHINE = ("device", "threads", "processes", "platform")
COST = ("wall_s", "step_s", "tokens_per_s", "peak_memory_mib", "trainable_parameters")


class Run(NamedTuple):
    """What the files of a run tell.

    Attributes:
        path: of its folder.
        label: its name among the others.
        figures: of report.json, or what there is so far.
        stands: where it stands.
        settings: flat, by name.
        metrics: the lines of metrics.jsonl.
        machine: what its last start was computed on, flat.
        prints: fingerprints of data and base.
    """

    path: Path
    label: str
    figures: dict[str, Any]
    stands: Standing
    settings: dict[str, Any]
    metrics: Metrics
    machine: dict[str, Any]
    prints: dict[str, Any]


def read_runs(names: Sequence[str]) -> list[Run]:
    """The runs of some folders, each once.

    Raises:
        UserError: one is no run, a file is damaged, or all are the same run.
    """
    places: dict[Path, str] = {}
    for name in names:
        if places.setdefault(Path(name).resolve(), name) != name:
            say(f"{name} is {places[Path(name).resolve()]}, which is named already.")
    given = list(dict.fromkeys(places.values()))
    if len(given) < 2:
        raise UserError(f"{given[0]} alone is named, more than once. Name another run beside it.")
    ends = [path.name for path in places]
    return [
        _read(Path(name), end if ends.count(end) == 1 else name)
        for name, end in zip(given, ends, strict=True)
    ]


def _read(path: Path, label: str) -> Run:
    final = read_final(path)
    settings = read_settings(path)
    metrics = read_metrics(path, growing=True)
    stands = standing(path, final, metrics, settings)
    if stands.state != "ended" or final is None:
        rows = read_rows(path / "trainable.json")
        final = figures_so_far(path, stands, metrics, settings, rows)
    start = ([{}] + read_starts(path))[-1]
    versions = mapping(start.get("versions"))
    machine = {key: start.get(key) for key in OF_MACHINE if key in start}
    machine |= {f"{name} (version)": value for name, value in versions.items()}
    prints: dict[str, Any] = {}
    if (path / "fingerprints.json").exists():
        with suppress(UserError):
            prints = mapping(read_json(path / "fingerprints.json", MIB, "fingerprints of the run"))
    return Run(path, label, final, stands, _flat(settings), metrics, machine, prints)


def compared(runs: Sequence[Run]) -> dict[str, Any]:
    """What `--json` prints: a list of values in each row stands in the order of the runs."""
    settings = [run.settings for run in runs]
    known = [name for name in settings[0] if all(name in one for one in settings)]
    every = dict.fromkeys(name for one in settings for name in one)
    return {
        "runs": [
            {
                "name": run.label,
                "path": str(run.path),
                "state": run.stands.state,
                **{key: run.figures.get(key) for key in ("task", "base", "precision")},
            }
            for run in runs
        ],
        "settings": _apart([n for n in known if n not in NAMES], settings),
        "settings_of_some": [name for name in every if name not in known],
        "machine": _apart(
            dict.fromkeys(name for run in runs for name in run.machine),
            [run.machine for run in runs],
        ),
        "fingerprints": [_print_row(name, runs) for name in PRINTS],
        "cost": _cost(runs),
        "losses": _losses(runs),
        "scores": [*_own_scores(runs), *paired_scores([run.path for run in runs])],
    }


def charts_of(runs: Sequence[Run]) -> list[Chart]:
    """Loss, validation loss and learning rate of all runs, each in one picture."""
    found = []
    for title, key in (
        ("Training loss (nats per answer token)", "loss"),
        ("Validation loss", "val_loss"),
        ("Learning rate", "learning_rate"),
    ):
        lines = [_line(run, key) for run in runs]
        found.append(chart(title, lines, may_be_log=key != "learning_rate"))
    return [one for one in found if one is not None]


def _line(run: Run, key: str) -> Line:
    points = series(run.metrics, key)
    # Of several runs the single steps would hide each other.
    means = next(smoothed(run.label, points), None) if key == "loss" else None
    return Line(run.label, points if means is None else means.points)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict) and value
        found |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _apart(names: Any, sources: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [{"name": name, "values": [one.get(name) for one in sources]} for name in names]
    return [row for row in rows if any(v != row["values"][0] for v in row["values"])]


def _print_row(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    # Of another form the same data has another fingerprint.
    keys = [name] if name == "base" else [name, "form"]
    values = [[run.prints.get(key) for key in keys] for run in runs]
    told = [value[0] for value in values]
    equal: bool | None = all(value == values[0] for value in values)
    forms = len({str(value[1:]) for value in values}) > 1
    if None in told or forms:
        equal = None
    return {"name": name, "values": told, "equal": equal}


def _cost(runs: Sequence[Run]) -> list[dict[str, Any]]:
    sources = []
    for run in runs:
        train = dict(mapping(run.figures.get("train")))
        for key in ("step_s", "tokens_per_s"):
            values = [value for _, value in series(run.metrics, key)]
            train[key] = median(values) if values else None
        sources.append(train | {"adapter_bytes": run.figures.get("adapter_bytes")})
    names = (*COST, "adapter_bytes", "steps", "samples", "tokens")
    known = [{k: v for k, v in one.items() if number(v) is not None} for one in sources]
    rows = [{"name": name, "values": [one.get(name) for one in known]} for name in names]
    return [row for row in rows if any(value is not None for value in row["values"])]


def _losses(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Training and validation losses, as far as each run has them."""
    rows = []
    for place, key, title in (
        ("train", "first_loss", "training loss, first step"),
        ("train", "last_loss", "training loss, last step"),
        ("before", "val_loss", "validation loss before"),
        ("after", "val_loss", "validation loss after"),
    ):
        values = []
        for run in runs:
            outer = run.figures if place == "train" else mapping(run.figures.get("evaluation"))
            values.append(number(mapping(outer.get(place)).get(key)))
        if any(value is not None for value in values):
            rows.append({"name": title, "values": values})
    return rows


def _own_scores(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Exact match of the questions that the runs themselves asked at their ends."""
    afters = [mapping(mapping(run.figures.get("evaluation")).get("after")) for run in runs]
    values = [number(after.get("exact_match")) for after in afters]
    if all(value is None for value in values):
        return []
    counts = {
        number(after.get("count")) for after in afters if after.get("exact_match") is not None
    }
    return [
        {
            "evaluation": "at the end of each run",
            "metric": "exact_match",
            "title": "exactly right",
            "most": 1.0,
            "count": counts.pop() if len(counts) == 1 else None,
            "scores": [
                None if v is None else {"value": v, "low": None, "high": None} for v in values
            ],
            "differences": [None] * len(runs),
            "note": "A run keeps its answers to a few questions alone, so these cannot be paired: "
            "evaluate each of them on the same data to compare them question by question.",
        }
    ]

"""Scores of several runs on the same questions, with the intervals of their paired differences."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tuninglab.errors import UserError
from tuninglab.evaluation.metrics.metric import Metric, Scored, mean
from tuninglab.evaluation.metrics.names import metric_named
from tuninglab.evaluation.metrics.statistics import difference
from tuninglab.evaluation.place import ASKED, FOLDER
from tuninglab.evaluation.predictions import PredictionsFile
from tuninglab.reporting.evaluation_facts import primary_of
from tuninglab.reporting.run_evaluations import LARGEST, MOST
from tuninglab.reporting.tables import mapping, number
from tuninglab.untrusted import MIB, read_json

SEED = 0
# By so much may a score of the answers on disk differ from the one that was reported.
ROUNDING = 1e-6
# What changes neither questions nor, but for rounding, answers.
SAME = {"batch_size", "controls", "precision"}


class Evaluated(NamedTuple):
    """An evaluation in a run folder: its name, its folder, what was asked, its figures."""

    name: str
    folder: Path
    asked: dict[str, Any]
    figures: dict[str, Any]

    @property
    def questions(self) -> str:
        """What is the same where the same questions were asked."""
        settings = mapping(self.asked.get("settings"))
        told = [self.asked.get("data"), self.asked.get("questions"), settings.get("shots")]
        return json.dumps(told, default=str)


def paired_scores(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """A row for each evaluation and metric that two runs or more have.

    A row holds `evaluation`, `metric`, `title` and `most` of the metric, `count` of questions; for
    each run the `scores` ({"value", "low", "high"}, None where it has none); the `differences` to
    the first run that has one, likewise; and a `note`, why there is no difference, or how the
    questions were asked otherwise.

    Args:
        runs: the run folders.
    """
    found = [_evaluations(run) for run in runs]
    # Asked twice, the same questions have two names: the one that others have too comes first.
    common = Counter(one.name for of_run in found for one in of_run)
    found = [sorted(of_run, key=lambda one: -common[one.name]) for of_run in found]
    rows = []
    for group in _groups(found):
        names = [name for one in group if one for name in mapping(one.figures.get("metrics"))]
        shared = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        answers = [None if one is None else _answers(one.folder) for one in group]
        rows += [_row(group, answers, name) for name in shared]
        if not shared:
            rows.append(_row(group, answers, "") | {"note": "They were scored by other metrics."})
    return rows


def _evaluations(run: Path) -> list[Evaluated]:
    """The evaluations of a run that can be read, by name."""
    found = []
    folders = sorted(run.glob(f"{FOLDER}/[!.]*/report.json"))[:MOST]
    for path in folders:
        try:
            asked = read_json(path.with_name(ASKED), MIB, "evaluation")
            figures = read_json(path, LARGEST, "evaluation")
        except UserError:
            continue
        name = path.parent.name
        found.append(Evaluated(name, path.parent, mapping(asked), mapping(figures)))
    return found


def _groups(found: Sequence[Sequence[Evaluated]]) -> list[list[Evaluated | None]]:
    """Evaluations of the same questions, else of the same name: of each run one or None."""
    groups: dict[str, list[Evaluated | None]] = {}
    left = [list(of_run) for of_run in found]
    for key in ("questions", "name"):
        named: dict[str, list[Evaluated | None]] = {}
        for place, of_run in enumerate(left):
            for one in of_run:
                group = named.setdefault(getattr(one, key), [None] * len(found))
                group[place] = group[place] or one
        named = {k: g for k, g in named.items() if sum(one is not None for one in g) > 1}
        groups |= {f"{key} {name}": group for name, group in named.items()}
        taken = {one.folder for group in named.values() for one in group if one}
        left = [[one for one in of_run if one.folder not in taken] for of_run in left]
    return list(groups.values())


def _row(
    group: Sequence[Evaluated | None], answers: Sequence[Mapping[str, Any] | None], name: str
) -> dict[str, Any]:
    """The scores of one metric."""
    scored = [(k, one) for k, one in enumerate(group) if one and (not name or _score(one, name))]
    first, base = scored[0]
    differences: list[Any] = [None] * len(group)
    notes = []
    for place, other in scored[1:] if name else ():
        try:
            pair = (base, answers[first]), (other, answers[place])
            differences[place] = _difference(*pair, name)
            notes.append(_asked_otherwise(base, other))
        except (UserError, ValueError) as error:
            notes.append(str(error))
    titles, most = (mapping(base.figures.get(key)) for key in ("titles", "most"))
    return {
        "evaluation": base.name,
        "metric": name,
        "title": str(titles.get(name, name)),
        "most": number(most.get(name)) or 1.0,
        "count": base.figures.get("count"),
        "scores": [None if one is None else _score(one, name) for one in group],
        "differences": differences,
        "note": " ".join(dict.fromkeys(filter(None, notes))),
    }


def _score(one: Evaluated, name: str) -> dict[str, float | None] | None:
    entry = mapping(mapping(one.figures.get("metrics")).get(name))
    found = {key: number(entry.get(key)) for key in ("value", "low", "high")}
    return found if found["value"] is not None else None


def _answers(folder: Path) -> dict[str, dict[str, Any]]:
    """The lines of predictions.jsonl by the name of the question."""
    lines = PredictionsFile(folder).read()
    return {json.dumps(line.get("id"), default=str): line for line in lines}


def _difference(one: Any, other: Any, name: str) -> Any:
    """What the other scores more than the one, with its interval.

    Raises:
        ValueError: they cannot be paired; it says why.
        UserError: there is no such metric.
    """
    (base, answers), (second, others) = one, other
    if base.questions != second.questions or answers.keys() != others.keys() or not answers:
        raise ValueError("Other questions were asked: the difference has no paired interval.")
    metric = metric_named(name)
    ids = sorted(answers)
    theirs = _numbers(metric, second, [others[i] for i in ids])
    own = _numbers(metric, base, [answers[i] for i in ids])
    return dict(difference(metric, theirs, own, SEED))


def _numbers(metric: Metric, one: Evaluated, lines: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The numbers (N, K) by a metric of the questions whose lines of predictions.jsonl these are.

    Raises:
        ValueError: the lines do not tell, or come to another score than was reported.
    """
    if metric.total is mean and metric.name == primary_of(one.figures):
        scores = [number(line.get("score")) for line in lines]
        if None in scores:
            raise ValueError(f"{one.folder} lacks scores: evaluate again.")
        rows = np.array(scores, np.float64).reshape(-1, 1)
    elif metric.needs:
        raise ValueError(f"Of {metric.name} the files keep no score of each question.")
    else:
        rows = metric.rows([_scored(line) for line in lines])
    reported = number(mapping(mapping(one.figures.get("metrics")).get(metric.name)).get("value"))
    if reported is None or abs(metric.of_all(rows) - reported) > ROUNDING:
        raise ValueError(f"{one.folder}: its answers and its scores do not fit: evaluate again.")
    return rows


def _scored(line: Mapping[str, Any]) -> Scored:
    answers = line.get("answers")
    texts = [str(text) for text in answers] if isinstance(answers, list) and answers else [""]
    return Scored(str(line.get("prediction", "")), texts)


def _asked_otherwise(one: Evaluated, other: Evaluated) -> str:
    """In which settings two evaluations of the same questions differ; "" if in none."""
    settings = [mapping(e.asked.get("settings")) for e in (one, other)]
    names = [n for n in dict.fromkeys(n for s in settings for n in s) if n not in SAME]
    apart = [n for n in names if settings[0].get(n) != settings[1].get(n)]
    return f"They were asked otherwise ({', '.join(apart)})." if apart else ""

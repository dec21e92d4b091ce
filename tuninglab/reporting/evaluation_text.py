"""Figures of an evaluation, for a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tuninglab.reporting.evaluation_facts import (
    Figures,
    against_rows,
    headline,
    looked,
    metric_rows,
    moved,
    primary_of,
    scale_of,
    unseen,
    written,
)
from tuninglab.reporting.tables import PARTS, mapping, plain, table, visible

# Types and groups that are shown; the page has all of them.
MOST_PARTS = 30
LETTERS = 40


def table_of(figures: Figures) -> Group:
    """Scores with their intervals, beside those of who does not look; by type; against another.

    Args:
        figures: report.json of an evaluation.
    """
    shown: list[Any] = [_line(f"{figures.get('model')}: {headline(figures)}")]
    shown.append(_table(metric_rows(figures), "metric"))
    if source := mapping(figures.get("prior")).get("source"):
        shown.append(_line(f"prior: the most frequent answer, from {source}"))
    for key, title in PARTS:
        if rows := _part_rows(figures, key):
            shown.append(_table(rows[:MOST_PARTS], "part", title))
            if len(rows) > MOST_PARTS:
                shown.append(_line(f"and {len(rows) - MOST_PARTS} more in report.html"))
    if rows := against_rows(figures):
        shown += [_table(rows, "metric"), _line(moved(figures))]
    shown += [_line(looked(figures)), *(_line(note) for note in figures.get("notes") or ())]
    return Group(*shown)


def several(evaluations: Sequence[Figures]) -> Table:
    """Evaluations that differ in the examples before each question, a row each.

    Args:
        evaluations: report.json of each, at least one.
    """
    rows = []
    for figures in evaluations:
        row = {"examples": plain(figures.get("shots"))}
        for name, entry in mapping(figures.get("metrics")).items():
            scale = scale_of(figures, name)
            row[scale.title] = str(written(scale, entry))
        rows.append(row)
    return _table(rows, "examples", str(evaluations[0].get("data")))


def _part_rows(figures: Figures, key: str) -> list[dict[str, Any]]:
    """The headline metric of each part, and beside it those of who does not look at it."""
    name = primary_of(figures)
    scale, rows = scale_of(figures, name), []
    for label, part in mapping(figures.get(key)).items():
        row = {"part": label, "count": plain(mapping(part).get("count"))}
        row[scale.title] = str(written(scale, mapping(part).get(name)))
        for way, scores in unseen(figures).items():
            of_part = mapping(mapping(mapping(scores).get(key)).get(label))
            row[way] = written(scale, of_part.get(name)).score
        rows.append(row)
    return rows


def _table(rows: Sequence[dict[str, Any]], names: str, title: str = "") -> Table:
    """A table of rows with the same keys; the column `names` stands left, figures stand right."""
    shown = Table(
        title=_line(title) if title else None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    content = table(rows) or {"columns": [], "lines": []}
    for column in content["columns"]:
        head = "" if column == "part" else column
        shown.add_column(_line(_short(head)), justify="left" if column == names else "right")
    for line in content["lines"]:
        shown.add_row(*(_line(_short(cell)) for cell in line))
    return shown


def _line(text: object) -> Text:
    # As text, not as rich's markup: names of types and data are foreign.
    return Text(visible(str(text)))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LETTERS else f"{line[: LETTERS - 1]}…"

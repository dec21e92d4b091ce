"""The page of an evaluation: one self-contained file, from evaluation.html.jinja."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuninglab.disk import write_whole
from tuninglab.reporting.evaluation_cards import Row, gallery
from tuninglab.reporting.evaluation_facts import (
    Figures,
    Written,
    against_rows,
    bars,
    facts,
    headline,
    longest,
    looked,
    metric_rows,
    moved,
    parts,
    primary_of,
    scale_of,
    written,
)
from tuninglab.reporting.tables import PARTS, bounded, flat, mapping, plain, table
from tuninglab.reporting.templates import render

# Types and groups that are shown; a table of more is no overview.
MOST_PARTS = 200
MOST_IDS = 100
# Letters of an answer in a table, which has many of them.
LETTERS = 60


def write_evaluation(folder: Path, figures: Figures, rows: Sequence[Row]) -> Path:
    """Write report.html and report.json of an evaluation; returns the path of the page.

    Args:
        folder: is there.
        figures: scores and settings; texts of unknown origin are fine.
        rows: the answers, in the order of the data.

    Raises:
        ValueError: a figure is not finite.
        TypeError: a figure is nothing that JSON knows.
        WorkError: the files cannot be written.
    """
    # Both before anything is written: a folder holds what belongs together.
    content = json.dumps(figures, indent=2, allow_nan=False) + "\n"
    html, path = page(figures, rows), folder / "report.html"
    write_whole(path, html)
    write_whole(folder / "report.json", content)
    return path


def page(figures: Figures, rows: Sequence[Row]) -> str:
    """The page; every text is escaped, nothing is fetched, and no script but its own can run."""
    drawn = bars(figures)
    found = {title: parts(figures, key) for key, title in PARTS}
    metrics = mapping(figures.get("metrics"))
    return render(
        "evaluation.html.jinja",
        name=str(figures.get("name") or figures.get("data")),
        model=str(figures.get("model")),
        headline=headline(figures),
        score=next((bar.score for bar in drawn if bar.key == "model"), None),
        bars=drawn,
        looked=looked(figures),
        metrics=table(metric_rows(figures)),
        titles=[scale_of(figures, name).title for name in metrics],
        parts=[(title, some[:MOST_PARTS], some[MOST_PARTS:]) for title, some in found.items()],
        answers=_answers(figures),
        primary=scale_of(figures, primary_of(figures)).title,
        confusion=confusion_rows(figures.get("confusion")),
        against=table(against_rows(figures)),
        moved=moved(figures),
        ids=_ids(mapping(figures.get("against"))),
        gallery=gallery(figures, rows),
        facts_of=facts(figures),
        notes=[str(note) for note in figures.get("notes") or ()],
        settings=flat(mapping(figures.get("settings"))),
        choices=table([row for row in figures.get("choices") or () if isinstance(row, dict)]),
    )


def confusion_rows(confusion: object) -> dict[str, Any] | None:
    """Right answers and what was answered instead, with each row's shares.

    Args:
        confusion: `{"answers": N texts, "counts": (N, N + 1) numbers}`, a row for each right
            answer; the last column is of all other answers. None: answers are open.

    Returns:
        `heads`, the N + 1 columns, and `lines` of (answer, cells) with (count, share, whether it is
        the right one) each.
    """
    answers = [_short(text) for text in mapping(confusion).get("answers") or ()]
    lines = []
    for place, counts in enumerate(mapping(confusion).get("counts") or ()):
        whole = sum(counts) or 1
        cells = [(count, count / whole, column == place) for column, count in enumerate(counts)]
        lines.append((answers[place], cells))
    return {"heads": [*answers, "other"], "lines": lines} if lines else None


def _answers(figures: Figures) -> list[tuple[str, str, Written]]:
    """The most frequent right answers, how often they are right, and the score of those."""
    scale = scale_of(figures, primary_of(figures))
    rows = figures.get("by_answer") or ()
    full = longest(scale, rows)
    return [
        (_short(row.get("answer")), plain(row.get("count")), written(scale, row, full))
        for row in rows
    ]


def _ids(against: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """How many questions were gained and lost, and their names."""
    rows = []
    for title in ("gained", "lost"):
        ids = [_short(one) for one in against.get(title) or ()]
        more = f" and {len(ids) - MOST_IDS:,} more" if len(ids) > MOST_IDS else ""
        rows += [(title, f"{len(ids):,}", ", ".join(ids[:MOST_IDS]) + more)] if ids else []
    return rows


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    return bounded(line, LETTERS)

"""The page and the text of several runs compared, from what several_runs.py finds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tuninglab.console import say
from tuninglab.disk import own_file
from tuninglab.errors import UserError
from tuninglab.reporting.evaluation_facts import difference, written
from tuninglab.reporting.several_runs import Run, charts_of, compared, read_runs
from tuninglab.reporting.tables import Scale, bounded, fact, plain, visible
from tuninglab.reporting.templates import render
from tuninglab.untrusted import MIB, read_bytes

NAME = "comparison.html"
# By this a page of ours is known: no other file is replaced.
MARK = b'<meta name="generator" content="tuninglab report">'
HEAD = 4096
LETTERS = 200
CELL = 60
DIGEST = 12


class Section(NamedTuple):
    """A table: what it is of, its columns, its lines, and a note below."""

    title: str
    columns: list[str]
    lines: list[list[str]]
    note: str = ""


class Compared(NamedTuple):
    """What came of comparing.

    Attributes:
        page: where it is; "" if none was written.
        figures: for `--json`.
        text: for a terminal, as rich shows it.
    """

    page: str
    figures: dict[str, Any]
    text: Group


def compare(names: Sequence[str], out: str | None) -> Compared:
    """Compare runs, in the terminal and on a page.

    Args:
        names: the run folders; the first is what the others are measured against.
        out: where the page goes; None: beside the runs, if they lie in one folder.

    Raises:
        UserError: one is no run, a file is damaged, all are one run, or `out` is another file.
        WorkError: the disk is full.
    """
    if out is not None:
        _check_ours(Path(out))
    runs = read_runs(names)
    figures = compared(runs)
    sections = sections_of(runs, figures)
    place = Path(out) if out is not None else _beside(runs)
    if place is not None:
        content = render(
            "comparison.html.jinja",
            runs=[(run.label, str(run.path), _state(run)) for run in runs],
            lead=lead(runs, figures),
            sections=sections,
            charts=charts_of(runs),
        )
        with own_file(place) as beside:
            beside.write_text(content, encoding="utf-8")
    text = Group(*(_shown(section) for section in sections), Text(visible(lead(runs, figures))))
    return Compared(str(place or ""), figures, text)


def sections_of(runs: Sequence[Run], figures: dict[str, Any]) -> list[Section]:
    """The tables, in the order of a reader's questions: how well, at what cost, why."""
    labels = [run.label for run in runs]
    notes = [row["note"] for row in figures["scores"] if row["note"]]
    some = figures["settings_of_some"]
    known = f"Not all of them have: {', '.join(some)}." if some else ""
    costs = [
        [fact(row["name"], None)[0], *(fact(row["name"], v)[1] for v in row["values"])]
        for row in figures["cost"]
    ]
    machine = "Where they ran on other machines, time and memory tell of those, too."
    found = [
        Section(
            "Scores",
            ["", "questions", *labels],
            _score_lines(labels, figures["scores"]),
            " ".join(dict.fromkeys(notes)),
        ),
        Section("Losses", ["", *labels], _lines(figures["losses"])),
        Section("Cost", ["", *labels], costs),
        Section("Settings that differ", ["", *labels], _lines(figures["settings"]), known),
        Section("Learned from", ["", "", *labels], _print_lines(figures["fingerprints"])),
        Section("Machine, where it differs", ["", *labels], _lines(figures["machine"]), machine),
    ]
    return [section for section in found if section.lines]


def lead(runs: Sequence[Run], figures: dict[str, Any]) -> str:
    """The paired difference that says most, in a sentence; else that there is none."""
    for row in figures["scores"]:
        for run, apart in zip(runs, row["differences"], strict=True):
            if apart is None or apart["value"] is None:
                continue
            scale = Scale(row["title"], row["most"])
            base = next(r.label for r, s in zip(runs, row["scores"], strict=True) if s)
            low, high = apart["low"], apart["high"]
            chance = low is None or high is None or low <= 0 <= high
            doubt = " This can be chance." if chance else ""
            return (
                f"{run.label} against {base}, {row['title']}, on the same questions of "
                f"{row['evaluation']}: {difference(scale, apart)}.{doubt}"
            )
    return "No scores of the same questions: nothing tells which of them is better."


def _score_lines(labels: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    lines = []
    for row in rows:
        scale = Scale(row["title"], row["most"])
        cells = ["–" if one is None else str(written(scale, one)) for one in row["scores"]]
        name = f"{row['evaluation']}: {row['title']}" if row["title"] else row["evaluation"]
        lines.append([_short(name), plain(row["count"]), *cells])
        if any(row["differences"]):
            base = next(label for label, s in zip(labels, row["scores"], strict=True) if s)
            apart = ["" if one is None else difference(scale, one) for one in row["differences"]]
            lines.append([f"… minus {base}", "", *apart])
    return lines


def _lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [[row["name"], *(_short(plain(value)) for value in row["values"])] for row in rows]


def _print_lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    said = {True: "the same", False: "different", None: "not known"}
    return [
        [
            row["name"],
            said[row["equal"]],
            *("–" if v is None else _short(str(v)[:DIGEST]) for v in row["values"]),
        ]
        for row in rows
    ]


def _state(run: Run) -> str:
    return "" if run.stands.state == "ended" else str(run.stands)


def _beside(runs: Sequence[Run]) -> Path | None:
    """Where the page goes by itself: into the folder of the runs; None where that cannot be."""
    parents = {run.path.resolve().parent for run in runs}
    if len(parents) > 1:
        say("The runs lie in several folders: no page is written. Give --out FILE.html.")
        return None
    place = parents.pop() / NAME
    try:
        _check_ours(place)
    except UserError as error:
        say(f"No page is written: {error}")
        return None
    return place


def _check_ours(path: Path) -> None:
    """Pass if a page can be written there without harm to a file of somebody else.

    Raises:
        UserError: it cannot.
    """
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder. Make it, or give another --out.")
    if path.exists() and MARK not in read_bytes(path, 64 * MIB, "--out")[:HEAD]:
        raise UserError(f"{path} is there and no comparison of runs. Give another --out.")


def _shown(section: Section) -> Group:
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(section.columns):
        shown.add_column(
            Text(visible(column)), justify="right" if place else "left", overflow="fold"
        )
    for line in section.lines:
        # As text, not as rich's markup: names are foreign.
        shown.add_row(*(Text(visible(cell)) for cell in line))
    note = bounded(section.note, LETTERS * 3)
    notes = [Text(visible(note)), Text("")] if note else []
    return Group(Text(section.title, style="bold"), shown, *notes)


def _short(text: str) -> str:
    return bounded(" ".join(text.split()), CELL)

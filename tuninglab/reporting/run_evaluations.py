"""The evaluations that a run folder holds, as its report lists them."""

import os
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tuninglab.errors import UserError
from tuninglab.reporting.evaluation_facts import headline, primary_of, scale_of, written
from tuninglab.reporting.tables import bounded, mapping, visible
from tuninglab.untrusted import MIB, read_json

FOLDER = "evaluation"
# Evaluations that are listed, and bytes of the figures of one.
MOST = 200
LARGEST = 64 * MIB
LETTERS = 300


class Linked(NamedTuple):
    """An evaluation in the list.

    Attributes:
        name: that of its folder.
        link: of its page, from the run folder; "" if it has none.
        score: the first metric's, with its interval.
        text: what was asked, or that its figures are damaged.
    """

    name: str
    link: str
    score: str
    text: str


def evaluations_of(run_dir: Path) -> list[Linked]:
    """The evaluations of a run by name; a damaged one is listed as such and stops nothing."""
    try:
        # What begins with a dot is being written.
        names = sorted(n for n in os.listdir(run_dir / FOLDER) if not n.startswith("."))
    except OSError:
        return []
    folders = (run_dir / FOLDER / name for name in names)
    # A name without figures is that of an evaluation which has not ended.
    return [_linked(one) for one in islice((f for f in folders if _holds(f, "report.json")), MOST)]


def _linked(folder: Path) -> Linked:
    # Names of files may be no text; in an address their bytes stand as they are.
    address = "/".join((FOLDER, quote(os.fsencode(folder.name), safe=""), "report.html"))
    link = address if _holds(folder, "report.html") else ""
    name = visible(folder.name)
    try:
        figures = mapping(read_json(folder / "report.json", LARGEST, "evaluation"))
    except UserError:
        return Linked(name, link, "–", "its report.json is damaged")
    primary = primary_of(figures)
    score = written(scale_of(figures, primary), mapping(figures.get("metrics")).get(primary))
    return Linked(
        name, link, bounded(str(score), LETTERS), visible(bounded(headline(figures), LETTERS))
    )


def _holds(folder: Path, name: str) -> bool:
    # A pipe is listed too, as damaged: reading it would wait.
    return os.path.lexists(folder / name)

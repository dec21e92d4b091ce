"""The plan of a run for a terminal: a table with bars, and lines of what follows from it."""

import io
import shutil
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tuninglab.reporting.data_text import WIDTH, shows_colours
from tuninglab.reporting.tables import duration, size

BAR = 24
# Parts below this share of the whole stand in one line.
SMALL = 0.01
MIB = 2**20


def text_of(figures: Mapping[str, Any]) -> str:
    """All of a plan, from the figures of `plan --json`."""
    tables = [_memory(figures), _phases(figures)]
    if figures["suggestions"]:
        tables.append(_suggestions(figures))
    out = io.StringIO()
    width = min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH)
    console = Console(file=out, width=width, force_terminal=shows_colours(), highlight=False)
    for table in tables:
        console.print(table)
    for line in (*lines(figures), figures["note"]):
        if line:
            # As text, not as markup: the name of a machine is foreign.
            console.print(Text(line), soft_wrap=False)
    return out.getvalue().rstrip()


def lines(figures: Mapping[str, Any]) -> tuple[str, str]:
    """What matters most: memory and time, a line each."""
    total, error = figures["peak_memory_mib"]["total"], figures["uncertainty"]["memory"]
    free = "fits" if figures["fits"] else "does NOT fit"
    memory = (
        f"Memory: {_size(total)} (± {error:.0%}) while training; {free} into "
        f"{_size(figures['available_mib'])} of {figures['device']['name']}."
    )
    if figures["step_s"] is None:
        return memory, f"Time: not known, {figures['no_time']}."
    time = (
        f"Time: {_seconds(figures['step_s'])} a step (± {figures['uncertainty']['time']:.0%}), "
        f"{figures['steps']:,} steps; {duration(figures['wall_s'])} with validation and scores."
    )
    return memory, time


def _memory(figures: Mapping[str, Any]) -> Table:
    peak = figures["peak_memory_mib"]
    parts = {name: mib for name, mib in peak.items() if name != "total"}
    large = {name: mib for name, mib in parts.items() if mib >= SMALL * peak["total"]}
    if rest := sum(parts.values()) - sum(large.values()):
        large["all else"] = rest
    table = _table("Highest moment of the training", "part", "memory", "")
    for name, mib in large.items():
        table.add_row(escape(name), _size(mib), _bar(mib / peak["total"]))
    table.add_section()
    table.add_row("total", _size(peak["total"]), "", style="bold")
    return table


def _phases(figures: Mapping[str, Any]) -> Table:
    table = _table("Phases of the run", "phase", "memory", "of what is there")
    for name, mib in figures["phases"].items():
        share = mib / figures["available_mib"] if figures["available_mib"] else 2.0
        style = "red" if share > 1 else None
        table.add_row(escape(name), _size(mib), f"{_bar(min(share, 1))} {share:.0%}", style=style)
    return table


def _suggestions(figures: Mapping[str, Any]) -> Table:
    fitting = any(one["fits"] for one in figures["suggestions"])
    title = "What makes it fit" if fitting else "The least that was found; it does not fit either"
    table = _table(title, "flags", "memory", "a step")
    for one in figures["suggestions"]:
        flags = one["flags"] + (f"\n({one['price']})" if one["price"] else "")
        step = "–" if one["step_s"] is None else _step(one["step_s"], figures["step_s"])
        table.add_row(escape(flags), _size(one["needed_mib"]), step)
    return table


def _step(step_s: float, before_s: float) -> str:
    return f"{_seconds(step_s)} ({step_s / before_s - 1:+.0%})"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number == 1 else "left", overflow="fold")
    return table


def _bar(share: float) -> str:
    return "█" * max(1, round(BAR * share))


def _size(mib: float) -> str:
    return size(mib * MIB)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else duration(seconds)

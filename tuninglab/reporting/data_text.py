"""What was found in data, for a terminal."""

import io
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from tuninglab.reporting.data_facts import answer_rows, facts, headline, length_rows, set_rows
from tuninglab.reporting.data_shown import Shown
from tuninglab.reporting.tables import bounded, visible

WIDTH = 100
BAR = 30
MOST_ROWS = 10
# Around what is learned, where there are no colours.
OPEN, CLOSE = "⟦", "⟧"


def text_of(figures: Mapping[str, Any], records: Sequence[Shown]) -> str:
    """All figures in words, records as the model reads them, and the command at the end."""
    coloured = shows_colours()
    lines = [visible(headline(figures)), ""]
    rows = [(name, visible(value)) for name, value in facts(figures)]
    lines += _beside(rows)
    if sets := set_rows(figures):
        lines += ["", "An epoch:"]
    for row in sets:
        what = f"{row['rows of an epoch']} rows, {row['share']}, {row['passes']} passes"
        lines.append(visible(f"  {row['set']}: {what} of {row['usable']} usable records"))
    lines += _tables(figures)
    if records:
        key = "in colour" if coloured else f"in {OPEN} {CLOSE}"
        lines += ["", f"Records as the model reads them; what is learned stands {key}:"]
    for record in records:
        lines += ["", record_text(record, coloured)]
    if figures["samples"]:
        lines += ["", "To train on it:", f"  {figures['command']}"]
    return "\n".join(lines)


def record_text(record: Shown, coloured: bool) -> str:
    """A record as the model reads it: what is learned in colour or between brackets."""
    text = Text()
    for span in record.spans:
        said = visible(bounded(span.text))
        if span.picture is not None:
            text.append(f"{said}({visible(span.picture)})", "cyan")
        elif span.trained:
            text.append(said if coloured else f"{OPEN}{said}{CLOSE}", "bold green")
        else:
            text.append(said)
    learned = f"{record.trained:,} of {record.tokens:,} tokens learned"
    head = f"── {visible(record.sample.origin)}: {learned}"
    if not coloured:
        return f"{head}\n{text.plain}"
    out = io.StringIO()
    # Lines stay as they are: a terminal breaks them itself.
    console = Console(file=out, force_terminal=True, color_system="standard", highlight=False)
    console.print(text, soft_wrap=True, end="")
    return f"{head}\n{out.getvalue()}"


def shows_colours() -> bool:
    """Whether standard output is a terminal whose user wants colours (https://no-color.org)."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and sys.stdout.isatty()


def _tables(figures: Mapping[str, Any]) -> list[str]:
    lines = []
    if lengths := length_rows(figures):
        wide = max(len(label) for label, _, _ in lengths)
        lines += ["", "Tokens of a record:"]
        lines += [
            f"  {label:>{wide}}  {count:>9}  {'█' * round(BAR * part)}".rstrip()
            for label, count, part in lengths
        ]
    if answers := answer_rows(figures, MOST_ROWS):
        lines += ["", "Most frequent answers:"]
        lines += [
            f"  {share:>7}  {count:>9}  {_short(visible(text))}" for text, count, share in answers
        ]
    return lines


def _beside(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Names, and beside them what is to be said, in the width of the terminal."""
    indent = max((len(name) for name, _ in rows), default=0) + 2
    width = min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH)
    wrapper = textwrap.TextWrapper(
        max(width, 2 * indent), break_long_words=False, break_on_hyphens=False
    )
    wrapper.subsequent_indent = " " * indent
    lines = []
    for name, text in rows:
        wrapper.initial_indent = f"{name:<{indent}}"
        lines += wrapper.wrap(text)
    return lines


def _short(text: str, letters: int = 70) -> str:
    line = " ".join(text.split())
    return line if len(line) <= letters else f"{line[: letters - 1]}…"

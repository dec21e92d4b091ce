"""Figures as HTML tables: accuracies by question type, and plain rows. Every value is escaped."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

# The evaluations in the order of the columns: what is to be beaten first, the result last.
CONTROLS = (
    ("prior", "Prior", "always the most frequent answer to that type of question"),
    ("before", "Before", "the base model, untuned"),
    ("blank", "Blank", "the tuned model, shown empty pictures"),
    ("shuffled", "Shuffled", "the tuned model, shown the pictures of other questions"),
    ("after", "After", "the tuned model"),
)


# Where a score keeps its parts, and what the page calls them.
PARTS = (("by_type", "By type of question"), ("by_group", "By group"))

Scores = dict[str, dict[str, Any]]


def mapping(value: object) -> dict[str, Any]:
    """The value if it is a JSON object, else an empty one: a page shows what there is."""
    return value if isinstance(value, dict) else {}


def number(value: object) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON knows integers of any size
        return None


def accuracy_table(scores: Scores) -> str:
    """Exact match of each evaluation: over all questions, by type, and by group.

    Args:
        scores: by the names in CONTROLS, what report.json holds for it: `exact_match`, `count`,
            and `by_type` (and `by_group`) with a share, or a share and a count, of each part.
    """
    columns = [column for column in CONTROLS if column[0] in scores]
    body = [_row("All questions", {key: (s, s.get("count")) for key, s in scores.items()}, "all")]
    for part, title in PARTS:
        # A dict keeps the order of the report and drops repetitions, as a set would not.
        names = dict.fromkeys(name for s in scores.values() for name in mapping(s.get(part)))
        if names:
            heading = f'<th colspan="{len(columns) + 2}" scope="colgroup">{title}</th>'
            body.append(f'<tr class="part">{heading}</tr>')
        for name in names:
            cells = {key: _part_of(score, part, name) for key, score in scores.items()}
            body.append(_row(name, cells))
    head = "".join(f'<th scope="col">{escape(title)}</th>' for _, title, _ in columns)
    notes = "; ".join(f"<b>{escape(title)}</b>: {escape(note)}" for _, title, note in columns)
    return (
        '<div class="wide"><table class="accuracy"><caption>Share of exactly right answers.'
        f'</caption><thead><tr><th scope="col">Questions</th><th scope="col">Count</th>{head}'
        f'</tr></thead><tbody>{"".join(body)}</tbody></table></div><p class="note">{notes}.</p>'
    )


def _part_of(score: dict[str, Any], part: str, name: str) -> tuple[dict[str, Any], Any]:
    """The score of one type or group, and how many questions it has (None: not known)."""
    value = mapping(score.get(part)).get(name)
    inside = value if isinstance(value, dict) else {"exact_match": value}
    return inside, inside.get("count", mapping(score.get(f"count_{part}")).get(name))


def _row(label: str, scores: dict[str, tuple[dict[str, Any], Any]], style: str = "") -> str:
    cells = []
    for key, _, _ in CONTROLS:
        if key not in scores:
            continue
        share = number(scores[key][0].get("exact_match"))
        # A damaged share may be any number; a bar is never wider than its cell.
        width = 100 * min(max(share or 0.0, 0.0), 1.0)
        bar = f'<span class="bar" style="width:{width:.1f}%"></span>'
        cells.append(f'<td class="{key}">{percent(share)}{bar}</td>')
    # All evaluations ask the same questions; the last that knows their number is as good as any.
    counts = [count for _, count in scores.values() if count is not None]
    count = plain(counts[-1]) if counts else "–"
    row = f'<th scope="row">{escape(str(label))}</th><td>{escape(count)}</td>{"".join(cells)}'
    return f'<tr class="{style}">{row}</tr>' if style else f"<tr>{row}</tr>"


def fact_rows(facts: Sequence[tuple[str, str]]) -> str:
    """A table of names and values; nothing if there are none."""
    rows = [f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in facts]
    return f'<div class="wide"><table class="facts">{"".join(rows)}</table></div>' if rows else ""


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table with one column for each key of the rows; nothing if there are none."""
    # Rows of other tools may lack keys: a column is there as soon as one row has it.
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f'<th scope="col">{escape(str(key))}</th>' for key in columns)
    lines = ["".join(f"<td>{escape(plain(row.get(key)))}</td>" for key in columns) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    content = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{content}</div>' if rows else ""


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as names and values, `tuning_config.r` for what is inside another."""
    facts = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            facts += flat(value, f"{prefix}{key}.")
        else:
            facts.append((f"{prefix}{key}", plain(value)))
    return facts


def plain(value: object) -> str:
    """A value as people read it: thousands apart, four significant digits, yes and no."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or "–"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    # Parameter counts have up to ten digits.
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(share: float | None) -> str:
    """A share from 0 to 1 as `12.3 %`; a dash where it is not known."""
    return "–" if share is None else f"{100 * share:.1f} %"

"""Figures as the rows of tables, and values as people read them; report.html.jinja shows them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tuninglab.progress import duration

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

# Of a text that are shown: of longer ones the beginning tells enough.
MOST_LETTERS = 4000
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


def accuracies(scores: Scores) -> list[tuple[str, list[dict[str, Any]]]]:
    """Exact match of each evaluation: headings, the first of them empty, and the rows below each.

    Args:
        scores: by the names in CONTROLS and in their order, what report.json holds for it:
            `exact_match`, `count`, and `by_type` (and `by_group`) with a share, or a share and a
            count, of each part.
    """
    whole = _row("All questions", {key: (s, s.get("count")) for key, s in scores.items()})
    groups = [("", [whole])]
    for part, title in PARTS:
        # A dict keeps the order of the report and drops repetitions, as a set would not.
        names = dict.fromkeys(name for s in scores.values() for name in mapping(s.get(part)))
        cells = [(n, {key: _part_of(s, part, n) for key, s in scores.items()}) for n in names]
        if cells:
            groups.append((title, [_row(name, parts) for name, parts in cells]))
    return groups


def _part_of(score: dict[str, Any], part: str, name: str) -> tuple[dict[str, Any], Any]:
    """The score of one type or group, and how many questions it has (None: not known)."""
    value = mapping(score.get(part)).get(name)
    inside = value if isinstance(value, dict) else {"exact_match": value}
    return inside, inside.get("count", mapping(score.get(f"count_{part}")).get(name))


def _row(label: str, scores: dict[str, tuple[dict[str, Any], Any]]) -> dict[str, Any]:
    cells = []
    for key, (score, _) in scores.items():
        share = number(score.get("exact_match"))
        # A damaged share may be any number; a bar is never wider than its cell.
        width = 100 * min(max(share or 0.0, 0.0), 1.0)
        cells.append({"key": key, "share": percent(share), "width": f"{width:.1f}"})
    # All evaluations ask the same questions; the last that knows their number is as good as any.
    counts = [count for _, count in scores.values() if count is not None]
    return {"label": label, "count": plain(counts[-1]) if counts else "–", "cells": cells}


def table(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]] | None:
    """The `columns`, one for each key of the rows, and `lines` of a table; None without rows."""
    # Rows of other tools may lack keys: a column is there as soon as one row has it.
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[plain(row.get(key)) for key in columns] for row in rows]
    return {"columns": columns, "lines": lines} if rows else None


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as names and values, `tuning_config.r` for what is inside another."""
    facts = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            facts += flat(value, f"{prefix}{key}.")
        else:
            facts.append((f"{prefix}{key}", plain(value)))
    return facts


# Figures of report.json whose names hold a unit, in words.
WORDS = {
    "wall_s": "time",
    "first_loss": "loss in the first step",
    "last_loss": "loss in the last step",
    "peak_memory_mib": "peak memory",
    "adapter_bytes": "size of the adapter",
    "best": "best validation",
    "step_s": "time of a step",
    "tokens_per_s": "tokens per second",
}


def fact(name: str, value: object) -> tuple[str, str]:
    """A figure of report.json as a person says it: `peak memory`, `812 MiB`."""
    label, amount = WORDS.get(name, name.replace("_", " ")), number(value)
    if amount is not None and name.endswith("_s") and not name.endswith("_per_s"):
        return label, step_time(amount) if name == "step_s" else duration(amount)
    if amount is not None and name.endswith(("_mib", "_bytes")):
        return label, size(amount * 2**20 if name.endswith("_mib") else amount)
    return label, plain(value)


def step_time(seconds: float) -> str:
    """The time of a step, of which there are many: `240 ms`, `1.3 s`."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else duration(seconds)


def size(bytes_: float) -> str:
    """A number of bytes in the unit that leaves it readable: `806 KiB`, `1.25 GiB`."""
    for unit, factor in (("bytes", 1), ("KiB", 2**10), ("MiB", 2**20)):
        if bytes_ < 1023.5 * factor:
            return f"{bytes_ / factor:.0f} {unit}"
    return f"{bytes_ / 2**30:,.2f} GiB"


def plain(value: object) -> str:
    """A value as people read it: thousands apart, four significant digits, yes and no."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {plain(one)}" for name, one in value.items())
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


class Scale(NamedTuple):
    """How the scores of a metric are written: as shares in percent, others by their value.

    Attributes:
        title: what stands behind a score, for people.
        most: the best score there is.
    """

    title: str
    most: float = 1.0

    def score(self, value: float | None) -> str:
        """`12.3 %`, or `0.842` where scores are no shares; a dash where it is not known."""
        if value is None or self.most == 1:
            return percent(value)
        return f"{value:.3f}"

    def gain(self, value: float) -> str:
        """A difference of two scores: `12.3 points`, `0.842`."""
        return f"{100 * value:.1f} points" if self.most == 1 else f"{value:.3f}"

    def span(self, low: float, high: float) -> str:
        """The ends of a score's interval: `10.1–14.6`."""
        return f"{100 * low:.1f}–{100 * high:.1f}" if self.most == 1 else f"{low:.3f}–{high:.3f}"

    def reach(self, low: float, high: float) -> str:
        """The ends of a difference's interval, which may lie on both sides of zero."""
        if self.most == 1:
            return f"{100 * low:+.1f} to {100 * high:+.1f}"
        return f"{low:+.3f} to {high:+.3f}"


EXACT = Scale("exactly right")


def looking(
    after: float,
    controls: Mapping[str, float],
    questions: float | None,
    interval: tuple[float, float] | None = None,
    scale: Scale = EXACT,
) -> str:
    """In one sentence what looking is worth: at the pictures, or at the text if there are none.

    Args:
        after: the score of the model that looks.
        controls: the same of blank, shuffled and prior, by name, at least one; data without
            pictures has the prior alone.
        questions: how many were asked; None where it is not known.
        interval: of the paired difference to the best control. None: answers were not kept, and
            two standard errors are taken, as if the two were asked other questions.
        scale: how scores are written.
    """
    name, best = max(controls.items(), key=lambda item: item[1])
    figures = f"{scale.score(after)} {scale.title}, {scale.score(best)} without looking ({name})"
    reach = "" if interval is None else f" ({scale.reach(*interval)})"
    if after > best:
        worth = f"{figures}: looking is worth {scale.gain(after - best)}{reach}"
        if interval[0] <= 0 if interval else _within_chance(after, best, questions, scale):
            asked = f"on {questions:,.0f} questions " if questions else ""
            more = "hold out more records" if interval is None else "ask more of them"
            worth += f", which {asked}can be chance: {more}"
        return f"{worth}."
    if interval is not None:
        return f"{figures}: it answers no better than without looking{reach}."
    parts = ", or --tuning_config.train_perceiver true" if controls.keys() != {"prior"} else ""
    return (
        f"{figures}: it did not learn to look. More --epochs, a higher --learning_rate, more "
        f"records{parts} may help."
    )


def _within_chance(after: float, best: float, questions: float | None, scale: Scale) -> bool:
    """Whether two shares of right answers are less than two standard errors apart."""
    if not questions or scale.most != 1:
        return False
    spread = 2 * math.sqrt(after * (1 - after) + best * (1 - best))
    return after - best < spread / math.sqrt(questions)


def visible(text: str) -> str:
    """A text of unknown origin as a terminal may show it: nothing in it moves the cursor."""
    # Two that join letters, or keep them apart: many scripts and emoji need them.
    kept = "\n\t\u200c\u200d"
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)


def bounded(text: str, most: int = MOST_LETTERS) -> str:
    """A text of a record, cut where it is very long, which is said."""
    rest = len(text) - most
    return text if rest <= 0 else f"{text[:most]}… ({rest:,} letters more)"

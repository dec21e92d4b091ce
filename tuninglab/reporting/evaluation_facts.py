"""Figures of an evaluation as people read them, in rows that the terminal and the page share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tuninglab.progress import duration
from tuninglab.reporting.tables import Scale, bounded, looking, mapping, number, plain

# Scores of who does not look, and what they are of.
UNSEEN = {
    "blank": "Blank: empty pictures",
    "shuffled": "Shuffled: pictures of others",
    "prior": "Prior: most frequent answer",
}
# Letters of a type: of own data a question that is asked often is its own.
LETTERS = 200
NOT_ASKED = "Nothing was asked without looking, so nothing tells whether it looks."

Figures = Mapping[str, Any]


class Written(NamedTuple):
    """A score as it is read and drawn.

    Attributes:
        score: `62.4 %`.
        interval: the ends of its interval, `58.1–66.5`; "" if it has none.
        width: of its bar, in percent of the longest there can be.
        low: where its interval begins, likewise.
        high: where it ends.
    """

    score: str
    interval: str = ""
    width: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def __str__(self) -> str:
        return f"{self.score} ({self.interval})" if self.interval else self.score


class Bar(NamedTuple):
    """A score with its name.

    Attributes:
        key: whose it is: "model", "against", "blank", "shuffled", "prior".
        label: the same for people.
        score: that of the primary metric.
    """

    key: str
    label: str
    score: Written


class Part(NamedTuple):
    """The questions of a type or group, and their scores.

    Attributes:
        label: the data's name of it.
        count: how many there are.
        scores: one for each metric, in their order.
    """

    label: str
    count: str
    scores: Sequence[Written]


def scale_of(figures: Figures, name: str) -> Scale:
    """How the scores of a metric are written."""
    title = mapping(figures.get("titles")).get(name, name.replace("_", " "))
    most = number(mapping(figures.get("most")).get(name))
    return Scale(str(title), 1.0 if most is None else most)


def primary_of(figures: Figures) -> str:
    """The name of the metric that counts most: the stated one, else the first."""
    named = figures.get("primary")
    return named if isinstance(named, str) else next(iter(mapping(figures.get("metrics"))), "")


def written(scale: Scale, entry: object, full: float = 1.0) -> Written:
    """A score of the figures.

    Args:
        scale: of its metric.
        entry: `{"value", "low", "high"}`, of which the last two may be missing.
        full: the score whose bar is as long as can be.
    """
    value, low, high = (number(mapping(entry).get(key)) for key in ("value", "low", "high"))
    if value is None:
        return Written(scale.score(None))
    width = _part(value, full)
    if low is None or high is None:
        return Written(scale.score(value), "", width, width, width)
    ends = (_part(low, full), _part(high, full))
    return Written(scale.score(value), scale.span(low, high), width, *ends)


def longest(scale: Scale, entries: Iterable[object]) -> float:
    """The score whose bar is as long as can be: 1 of shares, of others the largest there is."""
    if scale.most == 1:
        return 1.0
    ends = (number(mapping(entry).get(key)) for entry in entries for key in ("value", "high"))
    return max((end for end in ends if end is not None), default=1.0)


def bars(figures: Figures) -> list[Bar]:
    """The primary score, and beside it those of the other model and of who does not look."""
    name = primary_of(figures)
    against = mapping(figures.get("against"))
    named = {"model": "This model", "against": str(against.get("model", "")), **UNSEEN}
    scores = {"model": figures.get("metrics"), "against": against.get("metrics")}
    scores |= unseen(figures)
    entries = {key: mapping(score).get(name) for key, score in scores.items() if score}
    scale = scale_of(figures, name)
    full = longest(scale, entries.values())
    return [Bar(k, named[k], written(scale, entry, full)) for k, entry in entries.items() if entry]


def metric_rows(figures: Figures) -> list[dict[str, Any]]:
    """Every metric: its score, and beside it those of who does not look."""
    rows = []
    for name, entry in mapping(figures.get("metrics")).items():
        scale = scale_of(figures, name)
        row = {"metric": scale.title, "score": str(written(scale, entry))}
        for key, scores in unseen(figures).items():
            row[key] = written(scale, mapping(scores).get(name)).score
        rows.append(row)
    return rows


def against_rows(figures: Figures) -> list[dict[str, Any]]:
    """Every metric of both models, and the paired difference; none if there is but one."""
    against = mapping(figures.get("against"))
    rows = []
    for name, entry in mapping(figures.get("metrics")).items() if against else ():
        scale = scale_of(figures, name)
        row = {"metric": scale.title, "score": written(scale, entry).score}
        row["against"] = written(scale, mapping(against.get("metrics")).get(name)).score
        row["difference"] = difference(scale, mapping(against.get("difference")).get(name))
        rows.append(row)
    return rows


def parts(figures: Figures, key: str) -> list[Part]:
    """The scores `by_type` or `by_group`, in the order of the report."""
    metrics = mapping(figures.get("metrics"))
    scales = {name: scale_of(figures, name) for name in metrics}
    found = {label: mapping(part) for label, part in mapping(figures.get(key)).items()}
    full = {n: longest(scale, [p.get(n) for p in found.values()]) for n, scale in scales.items()}
    rows = []
    for label, part in found.items():
        scores = [written(scales[name], part.get(name), full[name]) for name in metrics]
        rows.append(Part(bounded(label, LETTERS), plain(part.get("count")), scores))
    return rows


def headline(figures: Figures) -> str:
    """What was asked and what the first figure is, in a sentence."""
    shots = figures.get("shots")
    after = f" after {plain(shots)} examples each" if shots else ""
    title = scale_of(figures, primary_of(figures)).title
    return f"{title}, {plain(figures.get('count'))} questions of {figures.get('data')}{after}"


def looked(figures: Figures) -> str:
    """In a sentence what looking is worth."""
    worth = mapping(figures.get("looking"))
    name, control = str(worth.get("metric", "")), str(worth.get("control", ""))
    value = number(mapping(mapping(figures.get("metrics")).get(name)).get("value"))
    gain = number(worth.get("value"))
    if value is None or gain is None:
        return NOT_ASKED
    low, high = number(worth.get("low")), number(worth.get("high"))
    interval = None if low is None or high is None else (low, high)
    asked = number(figures.get("count"))
    return looking(value, {control: value - gain}, asked, interval, scale_of(figures, name))


def moved(figures: Figures) -> str:
    """How many questions are right now and were not of the other model, and how many not; or ""."""
    against = mapping(figures.get("against"))
    if not against:
        return ""
    gained, lost = (plain(len(against.get(key) or ())) for key in ("gained", "lost"))
    return f"Against {against.get('model')}: {gained} gained, {lost} lost."


def facts(figures: Figures) -> list[tuple[str, str]]:
    """What was asked, of whom and how, by name."""
    name = primary_of(figures)
    scale, speed = scale_of(figures, name), mapping(figures.get("speed"))
    reason = figures.get("why")
    rows = [
        ("model", plain(figures.get("model"))),
        ("data", plain(figures.get("data"))),
        ("questions", plain(figures.get("count"))),
        ("metric", f"{scale.title}: {reason}" if reason else scale.title),
        ("examples before each question", plain(figures.get("shots"))),
    ]
    if source := mapping(figures.get("prior")).get("source"):
        rows.append(("prior from", str(source)))
    if (seconds := number(speed.get("wall_s"))) is not None:
        rows.append(("time", duration(seconds)))
    if (rate := number(speed.get("samples_per_s"))) is not None:
        rows.append(("answers a second", f"{rate:,.1f}"))
    return rows


def difference(scale: Scale, entry: object) -> str:
    """A paired difference of two scores and its interval: `+2.1 points (+0.5 to +3.7)`."""
    value, low, high = (number(mapping(entry).get(key)) for key in ("value", "low", "high"))
    if value is None:
        return "–"
    said = scale.gain(value) if value < 0 else f"+{scale.gain(value)}"
    return said if low is None or high is None else f"{said} ({scale.reach(low, high)})"


def unseen(figures: Figures) -> dict[str, Any]:
    """The scores of who does not look, by the names in UNSEEN, those that there are."""
    found = {**mapping(figures.get("controls")), "prior": mapping(figures.get("prior"))}
    return {key: found[key] for key in UNSEEN if found.get(key)}


def _part(value: float, full: float) -> float:
    # A score may be below zero, and that of a damaged file any number.
    return round(100 * min(max(value / full, 0.0), 1.0), 1) if full > 0 else 0.0

"""Curves over the steps of a run, as SVG inside a page: what is drawn where."""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from tuninglab.reporting.tables import bounded, number

Metrics = list[dict[str, Any]]
Points = list[tuple[float, float]]

# Steps averaged into the thick line: about 30 points remain, whatever the run's length.
SMOOTHED_POINTS = 30
# A curve gets a logarithmic axis where the largest is more than so many times the smallest.
LOG_FROM = 20
# A damaged file may hold any number.
DRAWN = 1e30
# Of a picture in its own units; the page scales it.
WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 10, 24
TICKS, DASH = 4, 4
# More points than the picture has columns cannot be told apart.
MOST_POINTS = 400
# As many colours are told apart.
MOST_LINES = 8
LETTERS = 60
OF_SOURCE = "val_loss/"


class Line(NamedTuple):
    """A curve before it is drawn; a `pale` one stands behind the others, without a name."""

    label: str
    points: Points
    pale: bool = False


class Drawn(NamedTuple):
    """A curve: its name, its `d` of an SVG path, which colour, and whether it is pale."""

    label: str
    path: str
    colour: int
    pale: bool


class Chart(NamedTuple):
    """A picture of curves.

    Attributes:
        title: what is drawn.
        text: the same for those who cannot see it, from where to where.
        lines: the curves.
        x_ticks: places along the steps, and what stands there.
        y_ticks: likewise, of the values.
        left_out: curves that are not drawn, as there are too many.
    """

    title: str
    text: str
    lines: list[Drawn]
    x_ticks: list[tuple[str, str]]
    y_ticks: list[tuple[str, str]]
    left_out: int
    # Where the page puts the picture's frame.
    width, height, left, right = WIDTH, HEIGHT, LEFT, WIDTH - RIGHT


class Axis(NamedTuple):
    """Values from `low` to `high`, each 0 to 1 along it by `place`, with ticks."""

    low: float
    high: float
    ticks: list[float]
    log: bool = False

    def place(self, value: float) -> float:
        """How far along the axis a value is, from 0 to 1."""
        low, high = (math.log(v) if self.log else v for v in (self.low, self.high))
        value = math.log(value) if self.log else value
        return min(max((value - low) / (high - low), 0.0), 1.0)


def run_charts(metrics: Metrics) -> list[Chart]:
    """The curves of one run; those that its metrics have."""
    loss = series(metrics, "loss")
    means = list(smoothed("training", loss))
    # Single steps stay visible, pale: a smooth line alone hides spikes.
    losses = [Line("training", loss, pale=bool(means)), *means]
    losses.append(Line("validation", series(metrics, "val_loss")))
    names = [name for entry in metrics for name in entry if name.startswith(OF_SOURCE)]
    sources = [Line(n.removeprefix(OF_SOURCE), series(metrics, n)) for n in dict.fromkeys(names)]
    charts = [
        chart("Loss (nats per answer token)", losses, may_be_log=True),
        chart("Validation loss of each set", sources, may_be_log=True),
        *(chart(title, [Line("", series(metrics, key))], **how) for title, key, how in SINGLE),
    ]
    return [one for one in charts if one is not None]


# Curves of one line each: title, key of metrics.jsonl, how they are drawn.
SINGLE: tuple[tuple[str, str, dict[str, bool]], ...] = (
    ("Learning rate", "learning_rate", {"from_zero": True}),
    ("Norm of the gradient, before clipping", "grad_norm", {"may_be_log": True}),
    ("Tokens per second", "tokens_per_s", {"from_zero": True}),
    ("Peak memory (MiB)", "peak_memory_mib", {"from_zero": True}),
)


def series(metrics: Metrics, key: str) -> Points:
    """The (step, value) of a key, where both are numbers that can be drawn.

    Validation lines have no `loss`, training lines no `val_loss`: each curve picks its own.
    """
    points = [(number(entry.get("step")), number(entry.get(key))) for entry in metrics]
    known = [(s, v) for s, v in points if s is not None and v is not None]
    # Beyond, the axes of a drawing have no numbers.
    return [(s, v) for s, v in known if max(abs(s), abs(v)) < DRAWN]


def smoothed(label: str, points: Points) -> Iterator[Line]:
    """The line of trailing means, where there are enough points for one; else none."""
    width = len(points) // SMOOTHED_POINTS
    if width > 1:
        values = [value for _, value in points]
        # A centred mean would know the future at every point; not all are drawn.
        every = range(0, len(points), max(1, len(points) // MOST_POINTS))
        means = [(points[i][0], fmean(values[max(0, i - width + 1) : i + 1])) for i in every]
        yield Line(f"{label}, mean of {width} values", means)


def chart(
    title: str, lines: Sequence[Line], may_be_log: bool = False, from_zero: bool = False
) -> Chart | None:
    """Draw curves into one picture; None if there is no point.

    Args:
        title: of the picture.
        lines: the curves.
        may_be_log: whether values that lie far apart get a logarithmic axis.
        from_zero: whether the axis of the values begins there.
    """
    lines = [line for line in lines if line.points]
    shown, left_out = lines[:MOST_LINES], max(0, len(lines) - MOST_LINES)
    if not shown:
        return None
    steps, values = ([p[k] for line in shown for p in line.points] for k in (0, 1))
    low, high = min(values), max(values)
    log = may_be_log and low > 0 and high > LOG_FROM * low
    across = _axis(min(steps), max(steps))
    up = _log_axis(low, high) if log else _axis(min(low, 0.0) if from_zero else low, high)

    def x(step: float) -> float:
        return LEFT + across.place(step) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - up.place(value) * (HEIGHT - TOP - BOTTOM)

    # A smooth line has the colour of the pale one that it is the mean of.
    drawn, colour = [], 0
    for line in shown:
        path = _path([(x(step), y(value)) for step, value in _thinned(line.points)])
        drawn.append(Drawn(bounded(line.label, LETTERS), path, colour, line.pale))
        colour += not line.pale
    ends = [
        f"{one.label or title} from {said(one.points[0][1])} to {said(one.points[-1][1])}"
        for one in shown
        if not one.pale or len(shown) == 1
    ]
    text = f"{title}, over the steps: {bounded('; '.join(ends), 400)}"
    return Chart(title, text, drawn, _placed(across, x), _placed(up, y), left_out)


def said(value: float) -> str:
    """A number as it stands at an axis: `0.002`, `12.5k`."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= factor and abs(value) < 1e12:
            return f"{value / (1e3 if letter == 'k' else factor):.4g}{letter}"
    return f"{value:.4g}"


def _axis(low: float, high: float) -> Axis:
    """An even axis whose ends are ticks, in steps of 1, 2 or 5 times a power of ten."""
    largest = max(abs(low), abs(high))
    # What is all but equal has no scale of its own.
    if high - low <= 1e-6 * largest or largest < 1e-30:
        around = 0.1 * largest if largest > 1e-30 else 1.0
        low, high = (low - around, high + around) if low else (0.0, high + around)
    raw = (high - low) / TICKS
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [k * step for k in range(first, last + 1)]
    return Axis(ticks[0], ticks[-1], ticks)


def _log_axis(low: float, high: float) -> Axis:
    """A logarithmic axis from `low` to `high`, both above 0, with ticks at powers of ten."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    # Few ticks, whatever the range; over a few powers those between them too.
    every = max(1, (last - first) // TICKS)
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [f * 10.0**k for k in range(first, last + 1, every) for f in factors]
    return Axis(low, high, [tick for tick in ticks if low <= tick <= high], log=True)


def _placed(axis: Axis, place: Callable[[float], float]) -> list[tuple[str, str]]:
    return [
        (f"{place(tick):.1f}", said(round(tick, 12) if abs(tick) > 1e-6 else tick))
        for tick in axis.ticks
    ]


def _thinned(points: Points) -> Points:
    """At most two points for each column of the picture, the lowest and the highest there."""
    if len(points) <= 2 * MOST_POINTS:
        return points
    size = math.ceil(len(points) / MOST_POINTS)
    kept = []
    for start in range(0, len(points), size):
        part = range(start, min(start + size, len(points)))
        ends = {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
        kept += [points[i] for i in sorted(ends)]
    return kept


def _path(places: Sequence[tuple[float, float]]) -> str:
    # A single point alone would not be seen: it becomes a dash.
    if len(places) == 1:
        ((x, y),) = places
        places = [(max(x - DASH, 0.0), y), (min(x + DASH, WIDTH), y)]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)

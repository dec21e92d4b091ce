"""Curves: where what is drawn, whatever the numbers are."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuninglab.reporting.curves import (
    HEIGHT,
    MOST_LINES,
    MOST_POINTS,
    WIDTH,
    Line,
    chart,
    run_charts,
    said,
    series,
    smoothed,
)


def places(path):
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", path) if pair]


def drawn(points, **how):
    found = chart("t", [Line("a", points)], **how)
    assert found is not None
    return found


NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.integers() | st.none() | st.text()
KEYS = st.sampled_from(["step", "loss", "val_loss", "val_loss/a", "grad_norm", "learning_rate"])


@settings(max_examples=40)
@given(st.lists(st.dictionaries(KEYS, NUMBERS), max_size=20))
def test_whatever_the_metrics_hold_every_point_lies_in_the_picture(metrics):
    for one in run_charts(metrics):
        for line in one.lines:
            for x, y in places(line.path):
                assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
        for place, text in (*one.x_ticks, *one.y_ticks):
            assert 0 <= float(place) <= WIDTH and len(text) < 15


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30, unique=True),
    st.booleans(),
)
def test_a_larger_value_stands_no_lower_and_later_steps_stand_to_the_right(values, may_be_log):
    (line,) = drawn(list(enumerate(values)), may_be_log=may_be_log).lines
    found = places(line.path)
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    order = sorted(zip(values, (y for _, y in found), strict=True))
    heights = [y for _, y in order]
    assert heights == sorted(heights, reverse=True)


def test_values_stand_between_their_ticks_in_proportion():
    one = drawn([(0, 0.0), (5, 3.0), (10, 10.0)])
    ticks = {text: float(y) for y, text in one.y_ticks}
    assert list(ticks) == ["0", "5", "10"]
    (_, low), (_, between), (_, high) = places(one.lines[0].path)
    assert (low, high) == (ticks["0"], ticks["10"])
    assert between == pytest.approx(low + 0.3 * (high - low), abs=0.1)
    # Between powers of ten likewise, where values lie far apart.
    log = drawn([(0, 0.01), (1, 1.0)], may_be_log=True)
    heights = {text: float(y) for y, text in log.y_ticks}
    assert heights["0.1"] == pytest.approx((heights["0.01"] + heights["1"]) / 2, abs=0.1)


def test_an_axis_from_zero_has_it():
    assert [t for _, t in drawn([(1, 900.0), (2, 1000.0)], from_zero=True).y_ticks][0] == "0"
    assert [t for _, t in drawn([(1, 900.0), (2, 1000.0)]).y_ticks][0] != "0"


def test_a_long_run_is_thinned_but_its_spike_stays():
    values = [1.0] * 100_000
    values[77_777] = 9.0
    one = drawn(list(enumerate(values)))
    found = places(one.lines[0].path)
    assert len(found) <= 2 * MOST_POINTS
    assert min(y for _, y in found) < HEIGHT / 3


def test_means_trail_and_few_points_have_none():
    assert list(smoothed("a", [(k, 1.0) for k in range(59)])) == []
    points = [(float(k), float(k)) for k in range(90)]
    (line,) = smoothed("a", points)
    assert line.label == "a, mean of 3 values"
    assert line.points[0] == (0.0, 0.0) and line.points[-1] == (89.0, 88.0)


def test_curves_of_a_run_are_those_that_its_metrics_have():
    trained = {"loss": 1.0, "learning_rate": 0.1, "grad_norm": None, "tokens_per_s": 9.0}
    metrics = [{"step": k, **trained} for k in (1, 2)]
    metrics += [{"step": 2, "val_loss": 2.0, "val_loss/a.json": 1.5, "val_loss/b.json": 2.5}]
    found = {one.title: [line.label for line in one.lines] for one in run_charts(metrics)}
    assert found == {
        "Loss (nats per answer token)": ["training", "validation"],
        "Validation loss of each set": ["a.json", "b.json"],
        "Learning rate": [""],
        "Tokens per second": [""],
    }
    assert run_charts([]) == []


def test_more_curves_than_colours_are_said():
    lines = [Line(str(k), [(0, float(k))]) for k in range(MOST_LINES + 3)]
    one = chart("t", lines)
    assert one is not None
    assert len(one.lines) == MOST_LINES and one.left_out == 3
    assert len({line.colour for line in one.lines}) == MOST_LINES


def test_what_cannot_be_drawn_is_left_out():
    metrics = [{"step": 1, "loss": 1e300}, {"step": 2, "loss": True}, {"step": 3, "loss": 0.5}]
    assert series(metrics, "loss") == [(3, 0.5)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.002, "0.002"), (5000, "5000"), (12500, "12.5k"), (2e6, "2M"), (-3e9, "-3G")],
)
def test_numbers_at_an_axis_are_short(value, text):
    assert said(value) == text

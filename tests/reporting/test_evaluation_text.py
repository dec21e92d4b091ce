import io

import pytest
from rich.console import Console

from tests.reporting.evaluations import least, score, whole
from tuninglab.reporting.evaluation_facts import NOT_ASKED, bars, looked, written
from tuninglab.reporting.evaluation_text import MOST_PARTS, several, table_of
from tuninglab.reporting.tables import Scale, looking


def printed(shown, width=100):
    out = io.StringIO()
    Console(file=out, width=width).print(shown)
    return out.getvalue()


def line(text, start):
    """The cells of the line that begins with this."""
    (found,) = [one for one in text.splitlines() if one.strip().startswith(start)]
    return [cell for cell in found.strip().split("  ") if cell.strip()]


def test_scores_stand_beside_those_of_who_does_not_look():
    text = printed(table_of(whole()))
    cells = [cell.strip() for cell in line(text.split("By type")[0], "exact match")]
    assert cells == ["exact match", "75.0 % (70.0–80.0)", "40.0 %", "35.0 %", "30.0 %"]
    # A control that was not scored so has a dash.
    cells = [cell.strip() for cell in line(text.split("By type")[0], "ANLS")]
    assert cells == ["ANLS", "80.0 % (75.0–85.0)", "50.0 %", "–", "30.0 %"]
    assert [cell.strip() for cell in line(text, "shape")] == [
        *("shape", "1", "40.0 % (35.0–45.0)", "40.0 %", "–", "–"),
    ]
    assert "+35.0 points (+30.0 to +40.0)" in text and "-10.0 points (-15.0 to -5.0)" in text
    assert "Against embedded: 1 gained, 1 lost." in text
    assert "looking is worth 35.0 points (+20.0 to +50.0)." in text
    assert "1 record was left out" in text


def test_it_fits_a_terminal_of_80_columns():
    lines = printed(table_of(whole()), 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("75.0 % (70.0–80.0)   40.0 %" in one for one in lines)


def test_what_is_missing_is_left_out():
    text = printed(table_of(least()))
    assert "75.0 % (70.0–80.0)" in text and NOT_ASKED in text
    for absent in ("By type", "By group", "Against", "blank", "prior", "difference"):
        assert absent not in text


def test_foreign_texts_are_neither_markup_nor_commands_of_the_terminal():
    nasty = "[red]x[/] [/b] :smile: \x1b[31m \u202e"
    text = printed(table_of(whole(nasty)), 400)
    assert "[red]x[/] [/b] :smile: \\x1b[31m \\u202e" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_many_types_are_cut():
    types = {f"type {n}": {"count": 1, "exact_match": score(0.5)} for n in range(MOST_PARTS + 7)}
    text = printed(table_of(least() | {"by_type": types}))
    assert f"type {MOST_PARTS - 1} " in text and f"type {MOST_PARTS} " not in text
    assert "and 7 more in report.html" in text


def test_several_numbers_of_examples_are_a_row_each():
    shots = {0: 0.5, 4: 0.625, 8: 0.75}
    made = [least() | {"shots": n, "metrics": {"exact_match": score(v)}} for n, v in shots.items()]
    rows = [one.split("  ") for one in printed(several(made)).splitlines()]
    found = [[cell.strip() for cell in one if cell.strip()] for one in rows]
    assert [one for one in found if one and one[0] in "048"] == [
        *(["0", "50.0 % (45.0–55.0)"], ["4", "62.5 % (57.5–67.5)"], ["8", "75.0 % (70.0–80.0)"]),
    ]


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.005, 0.015), "looking is worth 1.0 points (+0.5 to +1.5)."),
        ((-0.005, 0.025), "(-0.5 to +2.5), which on 50 questions can be chance: ask more of them."),
        # Without an interval two standard errors are far more than a point.
        (None, "looking is worth 1.0 points, which on 50 questions can be chance: hold out more"),
    ],
)
def test_an_interval_tells_chance_better_than_the_rule_of_thumb(interval, said):
    assert said in looking(0.51, {"blank": 0.5}, 50, interval)


def test_no_better_than_a_control_is_said():
    said = looking(0.5, {"blank": 0.4, "prior": 0.52}, 50, (-0.05, 0.01))
    assert said.startswith("50.0 % exactly right, 52.0 % without looking (prior): ")
    assert said.endswith("it answers no better than without looking (-5.0 to +1.0).")
    assert "did not learn to look" in looking(0.5, {"blank": 0.4, "prior": 0.52}, 50)


def test_scores_that_are_no_shares_are_no_percentages():
    cider = Scale("CIDEr", 10.0)
    assert str(written(cider, score(0.842, 0.1))) == "0.842 (0.742–0.942)"
    said = looking(0.842, {"blank": 0.3}, 50, (0.5, 0.6), cider)
    assert said == (
        "0.842 CIDEr, 0.300 without looking (blank): looking is worth 0.542 (+0.500 to +0.600)."
    )
    # More than 1 is usual: the rule for shares does not hold.
    assert "worth 0.900." in looking(1.2, {"blank": 0.3}, 50, None, cider)


def test_the_longest_bar_is_that_of_the_whole_or_of_the_largest():
    shares = {bar.key: bar.score for bar in bars(whole())}
    assert list(shares) == ["model", "against", "blank", "shuffled", "prior"]
    assert (shares["model"].low, shares["model"].width, shares["model"].high) == (70, 75, 80)
    cider = {"primary": "cider", "most": {"cider": 10.0}, "titles": {}}
    cider |= {"metrics": {"cider": score(0.75)}, "controls": {"blank": {"cider": score(0.2)}}}
    drawn = {bar.key: bar.score for bar in bars(least() | cider)}
    assert drawn["model"].high == 100 and drawn["blank"].width == 25


@pytest.mark.parametrize(
    "worth", [None, {}, {"metric": "exact_match", "control": "blank", "value": None}, {"metric": 3}]
)
def test_without_controls_it_says_so(worth):
    assert looked(least() | {"looking": worth}) == NOT_ASKED

import json
import os
from urllib.parse import unquote

import pytest

from tests.reporting.evaluations import least, whole
from tests.reporting.test_report import parsed, run  # noqa: F401 (a fixture)
from tuninglab.reporting.run_evaluations import evaluations_of


@pytest.fixture
def hold(tmp_path):
    """A function (name, content of report.json, whether it has a page): an evaluation is there."""

    def hold(name, content, page=True, folder=tmp_path):
        place = folder / "evaluation" / name
        place.mkdir(parents=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (place / "report.json").write_text(text)
        if page:
            (place / "report.html").write_text("a page")
        return place

    return hold


def test_evaluations_stand_with_their_score_and_a_link(hold, tmp_path):
    hold("b", least())
    hold("a", whole(), page=False)
    first, second = evaluations_of(tmp_path)
    assert (first.name, first.link) == ("a", "")
    assert (second.name, second.link) == ("b", "evaluation/b/report.html")
    assert second.score == "75.0 % (70.0–80.0)"
    assert second.text == "exact match, 4 questions of test.jsonl"


def test_a_run_without_evaluations_lists_none(tmp_path):
    assert evaluations_of(tmp_path) == []
    (tmp_path / "evaluation").write_text("a file")
    assert evaluations_of(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    ["", "{", "[" * 500, '{"count": ' + "9" * 5000 + "}"],
)
def test_damaged_figures_are_said_and_stop_nothing(content, hold, tmp_path):
    hold("a", content)
    hold("b", least())
    first, second = evaluations_of(tmp_path)
    assert (first.score, first.text) == ("–", "its report.json is damaged")
    assert second.score.startswith("75.0 %")


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"primary": 3, "metrics": []},
        {"primary": "a", "metrics": {"a": 3}, "most": {"a": 0}, "titles": [], "count": {}},
        {"metrics": {"a": {"value": 1e308, "low": -1e308, "high": 1e308}}, "most": {"a": 1e-300}},
        {"metrics": {"a": {"value": True, "low": "x"}}, "data": ["a" * 10000], "shots": [1, {}]},
    ],
)
def test_strange_figures_leave_a_line(content, hold, tmp_path):
    hold("a", content)
    (one,) = evaluations_of(tmp_path)
    assert one.name == "a" and len(one.score) < 1000 and len(one.text) < 1000


def test_what_is_being_written_or_has_not_ended_is_left_out(hold, tmp_path):
    hold(".a.writing", least())
    (tmp_path / "evaluation" / "begun").mkdir()
    (tmp_path / "evaluation" / "notes.txt").write_text("mine")
    assert evaluations_of(tmp_path) == []


def test_a_pipe_is_not_waited_for(hold, tmp_path):
    place = hold("a", least())
    (place / "report.json").unlink()
    os.mkfifo(place / "report.json")
    assert evaluations_of(tmp_path)[0].text == "its report.json is damaged"


def test_a_strange_name_is_a_name_and_nothing_else(hold, tmp_path):
    name = "a&b#c?d%41 \"<b>'\u202e"
    hold(name, least())
    (one,) = evaluations_of(tmp_path)
    assert unquote(one.link) == f"evaluation/{name}/report.html"
    assert "\u202e" not in one.name and '"' not in one.link and "#" not in one.link


def test_the_report_of_a_run_lists_them(run, hold):  # noqa: F811
    before = parsed(run)
    assert "Evaluations" not in before.text
    hold("mine <i>", least(), folder=run)
    page = parsed(run)
    assert "Evaluations" in page.text and "mine <i>" in page.text and "i" not in page.tags
    assert [one for one in page.sources if not one.startswith("data:")] == [
        "evaluation/mine%20%3Ci%3E/report.html"
    ]

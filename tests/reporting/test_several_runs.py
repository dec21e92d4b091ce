"""Several runs beside each other: what differs, what it cost, which of them answers better."""

import json

import numpy as np
import pytest

from tests.reporting.evaluations import least
from tests.reporting.test_report import Checker, score
from tuninglab import cli
from tuninglab.errors import UserError
from tuninglab.reporting.paired_scores import paired_scores
from tuninglab.reporting.several_page import compare

ASKED = {"data": "d1", "questions": 40, "settings": {"shots": 0, "beams": 1}}


@pytest.fixture
def make(tmp_path):
    """A function (name, **what differs) -> a run folder below runs/."""

    def make(name, rate=0.1, share=0.5, prints="a", folder="runs", **settings):
        run = tmp_path / folder / name
        run.mkdir(parents=True)
        config = {"recipe": "finetune", "learning_rate": rate, "run_name": name, **settings}
        (run / "config.yaml").write_text("".join(f"{k}: {v}\n" for k, v in config.items()))
        train = {"steps": 2, "wall_s": 60.0, "peak_memory_mib": 500.0, "trainable_parameters": 9000}
        after = {} if share is None else {"after": score(share)}
        final = {"run_name": name, "train": train, "evaluation": after, "adapter_bytes": 1024}
        (run / "report.json").write_text(json.dumps(final))
        lines = [{"step": k, "loss": 1.0 / k, "step_s": 2.0, "tokens_per_s": 50.0} for k in (1, 2)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = {"training data": prints, "validation data": "v", "base": "b", "form": "2"}
        (run / "fingerprints.json").write_text(json.dumps(found))
        return run

    return make


def evaluated(run, right, name="test", metric="exact_match", **asked):
    """An evaluation of 40 questions of which the answers to `right` are right."""
    folder = run / "evaluation" / name
    folder.mkdir(parents=True)
    lines = [
        {
            "id": k,
            "prediction": "red" if k in right else "blue",
            "answers": ["red"],
            "score": float(k in right),
        }
        for k in range(40)
    ]
    value = {"value": len(right) / 40, "low": 0.0, "high": 1.0}
    figures = least() | {"count": 40, "primary": metric, "metrics": {metric: value}}
    (folder / "report.json").write_text(json.dumps(figures))
    (folder / "asked.json").write_text(json.dumps(ASKED | asked))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def row_of(figures, part, name):
    (row,) = [row for row in figures[part] if row["name"] == name]
    return row["values"]


def test_settings_that_differ_stand_alone_and_cost_side_by_side(make):
    runs = [make("a"), make("b", rate=0.2, prints="other", seed=3)]
    figures = compare(list(map(str, runs)), None).figures
    assert figures["settings"] == [{"name": "learning_rate", "values": [0.1, 0.2]}]
    assert figures["settings_of_some"] == ["seed"]
    assert row_of(figures, "cost", "peak_memory_mib") == [500.0, 500.0]
    assert row_of(figures, "cost", "tokens_per_s") == [50.0, 50.0]
    assert row_of(figures, "cost", "adapter_bytes") == [1024, 1024]
    equal = {row["name"]: row["equal"] for row in figures["fingerprints"]}
    assert equal == {"training data": False, "validation data": True, "base": True}


def test_paired_differences_are_those_of_the_same_questions_drawn_again(make):
    runs = [make("a"), make("b"), make("c")]
    evaluated(runs[0], range(10))
    evaluated(runs[2], range(4, 24))
    (row,) = paired_scores(runs)
    assert [s and s["value"] for s in row["scores"]] == [0.25, None, 0.5]
    assert row["differences"][:2] == [None, None] and row["note"] == ""
    apart = row["differences"][2]
    # By hand: 4 questions lost, 14 gained, of 40, drawn with numpy.
    step = np.array([-1.0] * 4 + [1.0] * 14 + [0.0] * 22)
    rng = np.random.default_rng(7)
    means = rng.choice(step, (20_000, 40)).mean(1)
    assert apart["value"] == pytest.approx(0.25)
    assert (apart["low"], apart["high"]) == pytest.approx(
        np.percentile(means, [2.5, 97.5]), abs=0.03
    )
    # Asked one by one the intervals of the scores would overlap far more.
    assert apart["low"] > 0


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"data": "d2"}, "Other questions were asked"),
        ({"metric": "contains"}, "scored by other metrics"),
        ({"settings": {"shots": 0, "beams": 3}}, "asked otherwise (beams)"),
    ],
)
def test_what_cannot_be_paired_is_said(make, other, said):
    runs = [make("a"), make("b")]
    evaluated(runs[0], range(10))
    evaluated(runs[1], range(20), **other)
    (row,) = paired_scores(runs)
    assert said in row["note"]
    assert (row["differences"][1] is None) == ("otherwise" not in said)


def test_answers_that_do_not_come_to_the_score_are_told(make):
    runs = [make("a"), make("b")]
    for run in runs:
        evaluated(run, range(10))
    (runs[1] / "evaluation/test/report.json").write_text(
        json.dumps(least() | {"metrics": {"exact_match": {"value": 0.9}}})
    )
    (row,) = paired_scores(runs)
    assert row["differences"] == [None, None] and "do not fit" in row["note"]


def test_a_metric_beside_the_first_is_scored_again(make):
    runs = [make("a"), make("b")]
    for run, right in zip(runs, (range(10), range(30)), strict=True):
        evaluated(run, right)
        path = run / "evaluation/test/report.json"
        figures = json.loads(path.read_text())
        figures["metrics"]["bleu4"] = {"value": 0.0}
        figures["metrics"]["contains"] = figures["metrics"]["exact_match"]
        path.write_text(json.dumps(figures))
    rows = {row["metric"]: row for row in paired_scores(runs)}
    assert rows["contains"]["differences"][1]["value"] == pytest.approx(0.5)
    assert rows.keys() == {"exact_match", "bleu4", "contains"}


def test_the_page_and_the_text_say_it_for_people(make, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    runs = [make("a<b>"), make("b", share=None)]
    evaluated(runs[0], range(10))
    evaluated(runs[1], range(20))
    assert cli.main(["report", *map(str, runs)]) == 0
    captured = capsys.readouterr()
    page = runs[0].parent / "comparison.html"
    assert captured.out.splitlines()[-1] == str(page)
    for said in ("+25.0 points", "500 MiB", "the same", "minus a<b>"):
        assert said in captured.out
    text = page.read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and "script" not in checker.tags and "b" not in checker.tags
    assert "b against a<b>" in checker.text and "+25.0 points" in checker.text
    assert checker.tags.count("svg") == 1
    compare(list(map(str, runs)), None)
    assert page.read_text() == text


def test_json_is_alone_on_standard_output(make, capsys):
    runs = [str(make("a")), str(make("b"))]
    assert cli.main(["report", "--json", *runs]) == 0
    assert [run["name"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["a", "b"]


def test_the_same_run_twice_is_one(make):
    a, b = make("a"), make("b")
    with pytest.raises(UserError, match="alone is named"):
        compare([str(a), f"{a}/../a"], None)
    assert len(compare([str(a), str(b), str(a)], None).figures["runs"]) == 2


def test_runs_of_one_name_are_told_by_their_paths(make, capsys):
    runs = [str(make("a")), str(make("a", folder="others"))]
    compared = compare(runs, None)
    assert [run["name"] for run in compared.figures["runs"]] == runs
    # Whose folder the page would be for is not clear.
    assert compared.page == "" and "Give --out" in capsys.readouterr().err


def test_the_page_lies_beside_the_runs_however_they_are_named(make, monkeypatch):
    here, other = make("a"), make("b")
    monkeypatch.chdir(here)
    assert compare([".", "../b"], None).page == str(other.parent / "comparison.html")
    assert (other.parent / "comparison.html").is_file() and not (here / "comparison.html").exists()


def test_a_file_of_somebody_else_is_left_alone(make, tmp_path, capsys):
    runs = [str(make("a")), str(make("b"))]
    theirs = tmp_path / "runs" / "comparison.html"
    theirs.write_text("mine")
    assert compare(runs, None).page == "" and theirs.read_text() == "mine"
    assert "No page is written" in capsys.readouterr().err
    with pytest.raises(UserError, match="no comparison of runs"):
        compare(runs, str(theirs))
    out = tmp_path / "x.html"
    for _ in range(2):
        assert compare(runs, str(out)).page == str(out)


def test_other_recipes_and_runs_without_scores_or_files_stand_beside(make, tmp_path):
    runs = [make("a"), make("b", share=None)]
    (runs[1] / "config.yaml").write_text("recipe: flan-t5\nlearning_rate: 0.1\n")
    for name in ("fingerprints.json", "metrics.jsonl"):
        (runs[1] / name).unlink()
    figures = compare(list(map(str, runs)), None).figures
    assert figures["settings"] == [{"name": "recipe", "values": ["finetune", "flan-t5"]}]
    assert [row["equal"] for row in figures["fingerprints"]] == [None] * 3
    (own,) = figures["scores"]
    assert own["scores"][1] is None and "cannot be paired" in own["note"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "b", "--watch"], "--watch"),
        (["a", "--out", "x.html"], "--out"),
        (["a", "b", "--out", "x.txt"], "ends in .html"),
        ([], "run"),
    ],
)
def test_flags_that_do_not_fit_are_refused(words, said, capsys):
    assert cli.main(["report", *words]) == 2
    assert said in capsys.readouterr().err

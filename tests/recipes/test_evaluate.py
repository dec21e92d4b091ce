"""The verb `evaluate`: a run on its data, beside controls and base, in one sitting or several."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tuninglab.adapters.switching import plain_name
from tuninglab.cli import run_verb
from tuninglab.config import EvaluateConfig
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.evaluation import engine
from tuninglab.recipes.evaluate import evaluate
from tuninglab.recipes.flamingo import finetune
from tuninglab.recipes.scored_model import open_scored
from tuninglab.run_folder.named_model import find_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(config, tmp_path) -> Path:
    """A run that knows its colours by half, on the data that it is scored on."""
    finetune(replace(config, max_steps=12, batch_size=6))
    return tmp_path / "a"


def scored(run, data, **changes) -> EvaluateConfig:
    settings = {"metric": ["exact", "contains"], "batch_size": 4, **changes}
    return EvaluateConfig(model=str(run), data=str(data), **settings)


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_figures_by_hand(run, tiny_data):
    (figures,) = evaluate(scored(run, tiny_data, against="base", name="mine")).figures
    folder = run / "evaluation" / "mine"
    assert json.loads((folder / "report.json").read_text()) == figures
    lines = lines_of(folder)
    truths = [row["messages"][-1]["content"] for row in map(json.loads, tiny_data.open())]
    assert [line["id"] for line in lines] == list(range(1, 13))
    assert [line["answers"] for line in lines] == [[truth] for truth in truths]
    for way, scores in {
        "prediction": figures["metrics"],
        "blank": figures["controls"]["blank"],
        "shuffled": figures["controls"]["shuffled"],
        "prior": figures["prior"],
        "against": figures["against"]["metrics"],
    }.items():
        right = [line[way] == truth for line, truth in zip(lines, truths, strict=True)]
        assert scores["exact_match"]["value"] == pytest.approx(sum(right) / 12), way
    # The same question is asked of all: the most frequent answer of the training data to it.
    assert {line["prior"] for line in lines} <= {
        name for name, count in Counter(truths).items() if count == max(Counter(truths).values())
    }
    assert figures["prior"]["source"] == f"training data of {run}"
    assert [line["score"] for line in lines] == [
        float(line["prediction"] == truth) for line, truth in zip(lines, truths, strict=True)
    ]
    both = zip(lines, truths, strict=True)
    steps = {line["id"]: (line["prediction"] == t) - (line["against"] == t) for line, t in both}
    assert figures["against"]["gained"] == [name for name, step in steps.items() if step > 0]
    assert figures["against"]["lost"] == [name for name, step in steps.items() if step < 0]
    gain = figures["against"]["difference"]["exact_match"]
    assert gain["value"] == pytest.approx(sum(steps.values()) / 12)
    assert gain["low"] <= gain["value"] <= gain["high"]
    best = max(s["exact_match"]["value"] for s in [*figures["controls"].values(), figures["prior"]])
    own = figures["metrics"]["exact_match"]["value"]
    assert figures["looking"]["value"] == pytest.approx(own - best)
    assert figures["count"] == 12 and figures["speed"]["answers"] == 36
    assert (folder / "report.html").read_text().startswith("<!")


def test_after_a_stop_at_any_batch_the_same_is_written(run, tiny_data, monkeypatch):
    whole, (expected,) = (
        run / "evaluation" / "whole",
        evaluate(scored(run, tiny_data, name="whole")).figures,
    )
    answer, left = engine._Work.answer, [0]

    def stopping(self, numbers, rows):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return answer(self, numbers, rows)

    monkeypatch.setattr(engine._Work, "answer", stopping)
    for batches in (0, 1, 1):
        left[0] = batches
        with pytest.raises(KeyboardInterrupt):
            evaluate(scored(run, tiny_data, name="parts"))
    left[0] = 1
    (figures,) = evaluate(scored(run, tiny_data, name="parts")).figures
    parts = run / "evaluation" / "parts"
    assert (parts / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()
    same = ("metrics", "controls", "prior", "looking", "by_type", "confusion", "count")
    assert {name: figures[name] for name in same} == {name: expected[name] for name in same}
    # All is known now: nothing is asked, and other metrics cost nothing.
    left[0] = 0
    (again,) = evaluate(scored(run, tiny_data, name="parts", metric=["f1"])).figures
    assert list(again["metrics"]) == ["token_f1"] and again["speed"] == figures["speed"]


def test_the_same_folder_is_gone_on_with_and_another_question_has_another(run, tiny_data):
    (first,) = evaluate(scored(run, tiny_data)).figures
    (same,) = evaluate(scored(run, tiny_data)).figures
    (other,) = evaluate(scored(run, tiny_data, limit=5)).figures
    assert (first["name"], same["name"], other["name"]) == ("colours", "colours", "colours-2")
    assert other["count"] == 5
    with pytest.raises(UserError, match="holds an evaluation of something else"):
        evaluate(scored(run, tiny_data, name="colours", limit=4))
    (replaced,) = evaluate(scored(run, tiny_data, name="colours", limit=4, overwrite=True)).figures
    assert replaced["count"] == 4 and len(lines_of(run / "evaluation" / "colours")) == 4


def test_a_run_that_is_made_anew_takes_its_evaluations_along(run, config, tiny_data):
    evaluate(scored(run, tiny_data, against="base"))
    finetune(replace(config, overwrite=True, max_steps=1))
    assert not (run / "evaluation").exists()
    evaluate(scored(run, tiny_data))
    (run / "evaluation" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds what no run wrote: evaluation/notes.txt"):
        finetune(replace(config, overwrite=True, max_steps=1))


def test_predictions_are_scored_without_a_model(run, tiny_data, tmp_path, monkeypatch):
    (asked,) = evaluate(scored(run, tiny_data)).figures
    monkeypatch.chdir(tmp_path)
    kept = lines_of(run / "evaluation" / "colours")
    file = tmp_path / "theirs.jsonl"
    bare = [{"id": str(line["id"]), "prediction": line["prediction"]} for line in kept]
    file.write_text("".join(json.dumps(line) + "\n" for line in reversed(bare)))
    again = EvaluateConfig(data=str(tiny_data), predictions=str(file), metric=["exact", "contains"])
    (figures,) = evaluate(again).figures
    assert figures["metrics"] == asked["metrics"] and figures["controls"] == {}
    assert (tmp_path / "evaluation" / "colours-theirs" / "report.html").is_file()
    assert lines_of(tmp_path / "evaluation" / "colours-theirs")[0]["id"] == 1
    with pytest.raises(UserError, match="lacks an answer to 12 of 12"):
        file.write_text('{"id": "x", "prediction": "red"}\n')
        evaluate(again)


def test_examples_stand_before_each_question_and_each_number_has_its_folder(run, tiny_data):
    settings = {"shots": [0, 2], "shots_data": str(tiny_data), "limit": 6}
    without, two = evaluate(scored(run, tiny_data, **settings)).figures
    assert (without["name"], two["name"]) == ("colours", "colours-2shots")
    assert (without["shots"], two["shots"]) == (0, 2)
    shas = [
        [line["prompt_sha"] for line in lines_of(run / "evaluation" / name)]
        for name in ("colours", "colours-2shots")
    ]
    assert not set(shas[0]) & set(shas[1])


def test_candidates_are_ranked(run, tiny_data):
    candidates = ["red", "green", "blue"]
    (figures,) = evaluate(scored(run, tiny_data, metric=["auto"], candidates=candidates)).figures
    assert list(figures["metrics"]) == ["ranked_accuracy"]
    for line in lines_of(run / "evaluation" / "colours"):
        ranks = line["probabilities"]["asked"]
        assert sum(ranks) == pytest.approx(1)
        assert line["prediction"] == candidates[ranks.index(max(ranks))]
    with pytest.raises(UserError, match="its answer 'red' is none of the candidates"):
        evaluate(scored(run, tiny_data, candidates=["x", "y"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "exakt"], "Did you mean exact"),
        (["--metric", "auc"], "no options to rank"),
        (["--metric", "mc"], "mc_accuracy needs"),
        (["--shots", "2"], "--shots is given without --shots_data"),
        (["--compat", "openflamingo"], "--compat is given without --task"),
        (["--limit", "0"], "--limit is 0"),
        (["--against", "base", "--predictions", "x"], "leave out a model"),
        (["--candidates", "red"], "--candidates is ['red']"),
        (["--name", "a/b"], "--name is 'a/b'"),
        (["--against", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_with_2_and_what_to_do(
    words, message, tiny_data, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run_verb("evaluate", ["embedded", "--data", str(tiny_data), *words]) == 2
    assert message in capsys.readouterr().err


def test_without_a_model_it_asks_for_one(tiny_data, capsys):
    assert run_verb("evaluate", ["--data", str(tiny_data)]) == 2
    assert "Name a run or a model, or give --predictions FILE" in capsys.readouterr().err


def test_standard_output_is_one_json_document(run, tiny_data, capsys):
    words = [str(run), "--data", str(tiny_data), "--json"]
    assert run_verb("evaluate", words) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["count"] == 12
    assert run_verb("evaluate", words[:-1]) == 0
    assert "exactly right" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_write_the_same_report(run, tiny_data):
    (one,) = evaluate(scored(run, tiny_data, name="one", threads=1)).figures
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tuninglab"]
    words += ["evaluate", str(run), "--data", str(tiny_data), "--name", "two", "--json"]
    words += ["--metric", "exact", "contains", "--batch_size", "4", "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads(done.stdout)
    same = ("metrics", "controls", "prior", "looking", "by_type", "confusion", "count")
    assert {name: two[name] for name in same} == {name: one[name] for name in same}
    folders = [run / "evaluation" / name for name in ("one", "two")]
    assert lines_of(folders[0]) == lines_of(folders[1])
    assert sorted(p.name for p in folders[1].iterdir() if p.name[0] != ".") == [
        *("asked.json", "predictions.jsonl", "report.html", "report.json"),
    ]


def test_what_was_trained_in_place_is_not_rounded_to_the_base(config, tmp_path):
    finetune(replace(config, precision="bf16", learning_rate=1e-2))
    run = tmp_path / "a"
    stored = load_file(run / "adapter" / "adapter_model.safetensors")
    scored_model = open_scored(find_model(str(run)), EvaluateConfig(model=str(run)), Choices())
    own = {plain_name(name): p for name, p in scored_model.model.named_parameters()}
    gates = {name: value for name, value in stored.items() if name.endswith("_gate")}
    # Else the test would show nothing.
    assert any(not torch.equal(value, value.bfloat16().float()) for value in gates.values())
    for name, value in gates.items():
        assert torch.equal(own[plain_name(name)], value)


def test_the_base_is_asked_in_the_words_of_the_run(config, tiny_data, tmp_path):
    finetune(replace(config, prompt="otter"))
    run = tmp_path / "a"
    (figures,) = evaluate(scored(run, tiny_data, against="base", limit=4)).figures
    folder = run / "evaluation" / "colours"
    shas = [[line["prompt_sha"] for line in lines_of(one)] for one in (folder, folder / "against")]
    assert shas[0] == shas[1]
    told = {one["choice"]: one["reason"] for one in figures["choices"]}
    assert told["precision"] == f"as {run} was tuned"

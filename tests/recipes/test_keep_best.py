"""--eval_metric, --keep_best and --patience: the best validation is what a run ends with."""

import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import Colours
from tests.worlds import all_well, in_world
from tuninglab.cli import finetune_main
from tuninglab.config import FinetuneConfig, FlanT5Config
from tuninglab.config.tuning import TuningConfig
from tuninglab.errors import UserError, WorkError
from tuninglab.evaluation import own_data
from tuninglab.recipes.flamingo import finetune
from tuninglab.training import loop

ADAPTER = Path("adapter") / "adapter_model.safetensors"


@pytest.fixture
def config(config, tiny_data) -> FinetuneConfig:
    # So it learns to answer, and answers and losses go up and down.
    return replace(
        config,
        val_data=str(tiny_data),
        max_steps=11,
        learning_rate=2e-2,
        tuning_config=TuningConfig(train_answer_tokens="true"),
        eval_steps=1,
        lr_scheduler="constant",
        warmup_steps=0,
        eval_metric=["exact"],
    )


def lines_of(config: FinetuneConfig, name: str = "a") -> list[dict]:
    path = Path(config.output_dir) / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def validations(config: FinetuneConfig, name: str = "a") -> list[dict]:
    return [line for line in lines_of(config, name) if "val_loss" in line and line["step"]]


def checkpoints(config: FinetuneConfig, name: str = "a") -> list[int]:
    folder = Path(config.output_dir) / name / "checkpoints"
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def go_on(config: FinetuneConfig, **changes) -> dict:
    place = {"run_name": config.run_name, "output_dir": config.output_dir}
    return finetune(FinetuneConfig(**place, resume=True, **changes))


def same_weights(config: FinetuneConfig, one: str, other: str) -> bool:
    folder = Path(config.output_dir)
    return (folder / one).read_bytes() == (folder / other).read_bytes()


def best_of(lines: list[dict], key: str) -> dict:
    """The first of the best lines, by a rule of its own: sorted, the earlier before the later."""
    sign = 1 if key == "val_loss" else -1
    return sorted(lines, key=lambda line: (sign * line[key], line["step"]))[0]


@pytest.mark.parametrize("keep_best", ["metric", "val_loss"])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_run_ends_with_its_best_validation(config, keep_best, keep, capsys):
    report = finetune(replace(config, keep_best=keep_best, keep_checkpoints=keep, save_steps=1))
    name = "val_loss" if keep_best == "val_loss" else "exact_match"
    key = "val_loss" if keep_best == "val_loss" else "val_exact_match"
    lines = validations(config)
    assert [line["step"] for line in lines] == list(range(1, 12))
    best = best_of(lines, key)
    # Otherwise nothing is shown here.
    assert 1 < best["step"] < 11 and len({line[key] for line in lines}) > 2
    assert report["train"]["best"] == {"step": best["step"], "metric": name, "value": best[key]}
    assert report["train"]["steps"] == 11 and "stopped_early" not in report["train"]
    kept = {best["step"], *range(12 - keep, 12)}
    assert checkpoints(config) == sorted(kept)
    place = f"a/checkpoints/step-{best['step']:06d}"
    assert same_weights(config, f"a/{ADAPTER}", f"{place}/{ADAPTER}")
    assert not same_weights(config, f"a/{ADAPTER}", f"a/checkpoints/step-000011/{ADAPTER}")
    # The scores are those of that step, of the loss and of the answers.
    after = report["evaluation"]["after"]
    assert after["val_loss"] == best["val_loss"]
    assert after["exact_match"] == best["val_exact_match"]
    said = f"best: step {best['step']}, {name} {best[key]:.4g} (last: {lines[-1][key]:.4g})"
    assert said in capsys.readouterr().err


def test_validations_are_scored_by_each_metric_and_change_nothing_else(config, capsys):
    metrics = ["exact", "vqa", "token_f1"]
    settings = replace(config, max_steps=4, eval_steps=2)
    report = finetune(replace(settings, eval_metric=metrics))
    finetune(replace(settings, eval_metric=None, run_name="b"))
    scored, plain = validations(config), validations(config, "b")
    assert [line["step"] for line in scored] == [2, 4]
    names = {"val_exact_match", "val_vqa_accuracy", "val_token_f1"}
    assert all(set(line) == {"step", "epoch", "val_loss"} | names for line in scored)
    assert [line["val_loss"] for line in scored] == [line["val_loss"] for line in plain]
    assert all(set(line) == {"step", "epoch", "val_loss"} for line in plain)
    losses = [[line["loss"] for line in lines_of(config, n) if "loss" in line] for n in "ab"]
    assert losses[0] == losses[1]
    assert same_weights(config, f"a/{ADAPTER}", f"b/{ADAPTER}")
    before, after = (report["evaluation"][when] for when in ("before", "after"))
    for score in (before, after, *report["evaluation"]["controls"].values()):
        assert {"exact_match", "by_type", "count", "vqa_accuracy", "token_f1"} <= set(score)
        assert all(0 <= score[name] <= 1 for name in ("vqa_accuracy", "token_f1"))
    assert after["vqa_accuracy"] == scored[-1]["val_vqa_accuracy"]
    assert "best" not in report["train"]
    shown = f"step 4: val_loss {scored[-1]['val_loss']:.4f}, val_exact_match "
    assert re.search(re.escape(shown) + r"\d\.\d{4}, val_vqa_accuracy", capsys.readouterr().err)


def plan(monkeypatch, values: list[float]) -> None:
    """Validations come to these values, one after the other, whatever the model is."""
    original = loop.validation_line

    def planned(state, validate):
        line = original(state, validate)
        return line | {"val_exact_match": values[state.progress.step - 1]}

    monkeypatch.setattr(loop, "validation_line", planned)


UPS_AND_DOWNS = [0.1, 0.3, 0.3, 0.2, 0.5, 0.5, 0.4, 0.4, 0.9, 1.0, 0.6]


def test_patience_stops_and_a_larger_one_goes_on(config, monkeypatch, capsys):
    plan(monkeypatch, UPS_AND_DOWNS)
    settings = replace(config, keep_best="metric", patience=3, logging_steps=3)
    report = finetune(settings)
    # Equal is not better: the third after step 5 is step 8.
    assert report["train"]["steps"] == 8
    assert report["train"]["best"] == {"step": 5, "metric": "exact_match", "value": 0.5}
    reason = "no exact_match better than 0.5 (step 5) in 3 validations in a row"
    assert report["train"]["stopped_early"] == {"step": 8, "reason": reason}
    said = capsys.readouterr().err
    assert f"Stopped early after step 8 of 11: {reason}." in said
    assert "best: step 5, exact_match 0.5 (last: 0.4)" in said
    rates = [line["learning_rate"] for line in lines_of(config) if "loss" in line]
    before = (Path(config.output_dir) / "a" / ADAPTER).read_bytes()
    # Once more: it ends at once, as it was.
    again = go_on(settings)
    assert again["train"]["stopped_early"] == report["train"]["stopped_early"]
    assert again["train"]["best"] == report["train"]["best"] and again["train"]["steps"] == 8
    assert (Path(config.output_dir) / "a" / ADAPTER).read_bytes() == before
    said = capsys.readouterr().err
    assert "training: 0 steps" in said and "Stopped early after step 8 of 11" in said
    # With more patience it is the run that had it from the start.
    longer = go_on(settings, patience=4)
    whole = finetune(replace(settings, patience=4, run_name="whole"))
    assert longer["train"]["best"] == whole["train"]["best"]
    assert whole["train"]["best"]["step"] == 10 and "stopped_early" not in longer["train"]
    assert same_weights(config, f"a/{ADAPTER}", f"whole/{ADAPTER}")
    lines, expected = lines_of(config), lines_of(config, "whole")
    pick = ("step", "loss", "val_loss", "val_exact_match", "learning_rate")
    assert [[line.get(k) for k in pick] for line in lines] == [
        [line.get(k) for k in pick] for line in expected
    ]
    assert rates == [line["learning_rate"] for line in expected if "loss" in line][: len(rates)]


def test_the_learning_rate_is_planned_for_all_steps(config, monkeypatch):
    plan(monkeypatch, UPS_AND_DOWNS)
    settings = replace(config, lr_scheduler="linear", keep_best="metric")
    finetune(replace(settings, patience=3))
    finetune(replace(settings, run_name="b"))
    of_runs = [[x["learning_rate"] for x in lines_of(config, n) if "loss" in x] for n in "ab"]
    assert of_runs[0] == of_runs[1][:8]


class Killed(BaseException):
    """What no code expects: the process is gone."""


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("signal", marks=pytest.mark.slow),
        pytest.param("kill", marks=pytest.mark.slow),
        "kill while validating",
    ],
)
def test_a_run_that_was_ended_at_any_step_comes_to_the_same(config, monkeypatch, kind):
    plan(monkeypatch, UPS_AND_DOWNS)
    settings = replace(
        config, keep_best="metric", patience=3, keep_checkpoints=1, score_questions=3
    )
    expected = finetune(replace(settings, run_name="whole"))
    for step in range(1, 9):
        name = f"run{step}"
        with monkeypatch.context() as patched:
            end_at(patched, step, kind)
            if (kind, step) == ("signal", 8):
                # It stops there of itself.
                finetune(replace(settings, run_name=name))
            else:
                with pytest.raises((KeyboardInterrupt, Killed)):
                    finetune(replace(settings, run_name=name))
        if not checkpoints(config, name):
            assert step == 1
            continue
        report = go_on(replace(settings, run_name=name))
        for part in ("best", "stopped_early", "steps", "samples", "tokens", "last_loss"):
            assert report["train"][part] == expected["train"][part], (step, part)
        assert report["evaluation"] == expected["evaluation"]
        assert checkpoints(config, name) == checkpoints(config, "whole") == [5, 8]
        for folder in ("", "checkpoints/step-000005/", "checkpoints/step-000008/"):
            assert same_weights(config, f"{name}/{folder}{ADAPTER}", f"whole/{folder}{ADAPTER}")
        pick = ("step", "loss", "val_loss", "val_exact_match", "learning_rate", "grad_norm")
        lines = [[[x.get(k) for k in pick] for x in lines_of(config, n)] for n in (name, "whole")]
        assert lines[0] == lines[1]


def end_at(patched: pytest.MonkeyPatch, step: int, kind: str) -> None:
    """Let the process be signalled or killed within a step."""
    place = "validation_line" if kind == "kill while validating" else "count_step"
    original, calls = getattr(loop, place), []

    def ending(*args):
        calls.append(0)
        if len(calls) == step and kind == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        if len(calls) == step and kind == "kill":
            raise Killed
        value = original(*args)
        if len(calls) == step and kind == "kill while validating":
            raise Killed
        return value

    patched.setattr(loop, place, ending)


def test_a_best_checkpoint_that_is_gone_is_forgotten_aloud(config, monkeypatch, capsys):
    """The newest is damaged, and the best of the one before gave way to it."""
    plan(monkeypatch, [0.1, 0.5, 0.4, 0.6, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1])
    settings = replace(config, keep_best="metric", save_steps=1, max_steps=6)
    whole = finetune(replace(settings, run_name="whole"))
    finetune(replace(settings, max_steps=4))
    assert checkpoints(config) == [3, 4]
    state = Path(config.output_dir) / "a" / "checkpoints" / "step-000004" / "state.pt"
    state.write_bytes(state.read_bytes()[:-9])
    report = go_on(settings, max_steps=6)
    said = capsys.readouterr().err
    assert re.search(
        r"the best checkpoint so far, .*step-000002, cannot be used \(it is gone", said
    )
    assert report["train"]["best"] == whole["train"]["best"]
    assert same_weights(config, f"a/{ADAPTER}", f"whole/{ADAPTER}")


def test_a_best_checkpoint_that_is_damaged_at_the_end_is_named(config, monkeypatch):
    plan(monkeypatch, [0.9, 0.5, 0.8])
    finetune(replace(config, keep_best="metric", max_steps=3))
    original = loop.end_with_best

    def damaged(state, folder, *args):
        path = folder / "step-000001" / "trainable.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        original(state, folder, *args)

    monkeypatch.setattr(loop, "end_with_best", damaged)
    with pytest.raises(WorkError, match="The best checkpoint, .*step-000001.*trainable"):
        go_on(replace(config, keep_best="metric"))


def test_all_right_answers_of_a_record_count(own, tmp_path):
    """The model says what was learned: of records with other right answers beside it, too."""
    path = Path(own.data)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        record["answers"] = ["crimson", record["messages"][-1]["content"]]
    val = path.parent / "val.jsonl"
    val.write_text("\n".join(map(json.dumps, records)))
    seen = []

    def noting(questions, kinds, metrics=()):
        seen.extend(tuple(one.answers) for one in questions)
        return original(questions, kinds, metrics)

    from tuninglab.evaluation import task

    original = task.scored_by_type
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(task, "scored_by_type", noting)
        finetune(replace(own, val_data=str(val), max_steps=1))
    assert {answers[0] for answers in seen} == {"crimson"}
    assert {answers[1] for answers in seen} <= {"red", "green", "blue"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep_best": "metric", "eval_steps": 2}, "--eval_metric exact"),
        ({"keep_best": "val_loss"}, "--eval_steps 100"),
        ({"patience": 2, "eval_steps": 2}, "--keep_best val_loss"),
        ({"patience": 0, "eval_steps": 2, "keep_best": "val_loss"}, "at least 1"),
        ({"eval_metric": []}, "--eval_metric is"),
        ({"eval_metric": ["exact"], "score_questions": 0}, "--score_questions 0"),
        ({"keep_best": "loss"}, "metric, val_loss"),
    ],
)
@pytest.mark.parametrize("kind", [FinetuneConfig, FlanT5Config])
def test_settings_that_lack_something_are_told_what(kind, settings, said):
    with pytest.raises(UserError, match=re.escape(said)):
        kind(**settings).validate()
    kind(eval_metric=["exact"], keep_best="metric", eval_steps=2, patience=1).validate()


@pytest.mark.parametrize("name", ["eval_metric", "keep_best", "eval_steps"])
def test_data_without_validation_records_is_refused(name):
    value = {"eval_metric": ["exact"], "keep_best": "val_loss", "eval_steps": 2}[name]
    with pytest.raises(UserError, match=f"--{name} is given, but no validation data"):
        FinetuneConfig(data="x.json", **{name: value}).validate()


def test_metrics_that_do_not_fit_are_named_and_leave_no_folder(config, tmp_path):
    config = replace(config, run_name="fresh")
    with pytest.raises(UserError, match="--eval_metric: metric 'exakt' is unknown.*exact"):
        finetune(replace(config, eval_metric=["exakt"]))
    with pytest.raises(UserError, match="--eval_metric mc_accuracy needs .*colours.jsonl"):
        finetune(replace(config, eval_metric=["exact", "mc"]))
    with pytest.raises(UserError, match="Colours, from Python, scores no answers"):
        finetune(config, Colours(config.data))
    assert not (tmp_path / "fresh").exists()


def test_records_that_cannot_be_scored_are_refused(config, monkeypatch):
    monkeypatch.setattr(own_data, "evenly", lambda records, most: [])
    with pytest.raises(UserError, match="no validation record can be scored"):
        finetune(config)


def test_what_the_best_is_by_stays_when_a_run_goes_on(config):
    settings = replace(config, keep_best="metric", max_steps=2)
    finetune(settings)
    with pytest.raises(UserError, match="--keep_best is 'val_loss', but .* 'metric'"):
        go_on(settings, keep_best="val_loss")
    with pytest.raises(UserError, match="--eval_metric is .*vqa"):
        go_on(settings, eval_metric=["vqa"])
    plain = replace(config, run_name="plain", max_steps=2)
    finetune(plain)
    # Nothing better was kept there.
    with pytest.raises(UserError, match="--patience is given without --keep_best"):
        go_on(plain, patience=2)


@pytest.mark.slow
def test_two_processes_keep_the_best_of_one(config, tmp_path):
    """Each answers a share of the questions, and both stop after the same step."""
    flags = {"model": config.model, "data": config.data, "val_data": config.val_data}
    flags |= {"output_dir": config.output_dir, "precision": "fp32", "max_steps": 11}
    flags |= {"eval_steps": 1, "eval_metric": "exact", "keep_best": "metric", "patience": 2}
    flags |= {"learning_rate": 2e-2, "lr_scheduler": "constant", "warmup_steps": 0}
    flags |= {"tuning_config.train_answer_tokens": "true", "run_name": "two", "batch_size": 2}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    all_well(in_world(2, lambda: sys.exit(finetune_main(words)), tmp_path))
    one = finetune(replace(config, run_name="one", keep_best="metric", patience=2))
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    for part in ("best", "stopped_early", "steps"):
        assert two["train"].get(part) == one["train"].get(part)
    found = [[line["val_exact_match"] for line in validations(config, n)] for n in ("one", "two")]
    assert found[0] == found[1]
    best = two["train"]["best"]["step"]
    place = f"two/checkpoints/step-{best:06d}/{ADAPTER}"
    assert same_weights(config, f"two/{ADAPTER}", place)
    files = [tmp_path / name / ADAPTER for name in ("one", "two")]
    ours, theirs = map(load_file, files)
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-2, atol=1e-3)

"""The recipe started as users start it: by torchrun, as a script, under a job template."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import Colours
from tests.worlds import all_well, in_world
from tuninglab.adapters import products
from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.errors import UserError
from tuninglab.recipes.flamingo import finetune

ROOT = Path(__file__).parents[2]


def command_line(config: FinetuneConfig, name: str, **flags) -> list[str]:
    flags = {"run_name": name, "model": config.model, "data": config.data, **flags}
    flags = {"output_dir": config.output_dir, "precision": "fp32", "max_steps": 4, **flags}
    return [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]


@pytest.mark.slow
# An int8 gradient is rounded on each row by itself; what differs between the two runs in the last
# bit may round to the next step.
@pytest.mark.parametrize(
    ("flags", "loss_error"),
    [({}, 1e-5), pytest.param({"enable_int8": True}, 1e-4, marks=pytest.mark.slow)],
)
def test_two_processes_equal_one_with_twice_the_batch(config, tmp_path, flags, loss_error):
    """12 samples, 2 x 5 rows a step: the second step of an epoch is short and uneven."""
    by_torchrun = not flags
    flags = {"val_data": config.data, "learning_rate": 2e-4, **flags}
    # The rows of the answers' tokens train in both: nobody trained this base.
    alone = {"batch_size": 10, "max_steps": 4, "tuning_config": TuningConfig(), **flags}
    if by_torchrun:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        words = [*torchrun, "fine_tuning.py", *command_line(config, "two", batch_size=5, **flags)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        two = replace(config, run_name="two", **alone | {"batch_size": 5})
        all_well(in_world(2, lambda: finetune(two), tmp_path))
    finetune(replace(config, run_name="one", **alone))
    scores = [json.loads((tmp_path / n / "report.json").read_text()) for n in ("one", "two")]
    for when in ("before", "after"):
        one, two = (score["evaluation"][when]["val_loss"] for score in scores)
        assert two == pytest.approx(one, rel=loss_error), when
    lines = {}
    for name in ("one", "two"):
        text = (tmp_path / name / "metrics.jsonl").read_text()
        lines[name] = [json.loads(line) for line in text.splitlines()]
    for one, two in zip(lines["one"], lines["two"], strict=True):
        if "loss" not in one:
            continue
        assert two["loss"] == pytest.approx(one["loss"], rel=loss_error)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=100 * loss_error)
        assert (two["samples"], two["tokens"]) == (one["samples"], one["tokens"])
    weights = [load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in lines]
    for name, weight in weights[0].items():
        error = 100 * loss_error
        torch.testing.assert_close(weights[1][name], weight, rtol=error, atol=error / 100)


@pytest.mark.slow
def test_scores_of_two_processes_are_those_of_one(config, tmp_path):
    """Eleven questions, an uneven share for each: answers come back whole and in order."""
    samples = Path(config.data).read_text().splitlines()[:11]
    data = Path(config.data).parent / "eleven.jsonl"
    data.write_text("\n".join(samples))
    given = {"model": config.model, "output_dir": config.output_dir, "precision": "fp32"}
    # At this rate the answers after are others than before.
    given |= {"max_steps": 8, "learning_rate": 2e-2}

    def tune(name: str, size: int) -> None:
        finetune(FinetuneConfig(**given, run_name=name, batch_size=size), Colours(str(data)))

    all_well(in_world(2, lambda: tune("two", 4), tmp_path))
    tune("one", 8)
    one, two = (
        json.loads((tmp_path / name / "report.json").read_text())["evaluation"]
        for name in ("one", "two")
    )
    assert one == two
    assert len(one["before"]["answers"]) == 11 and len(set(one["before"]["answers"])) > 1
    assert one["after"]["answers"] != one["before"]["answers"]


@pytest.mark.slow
@pytest.mark.parametrize(("slow", "decided"), [("1", "torch"), ("none", "onednn")])
def test_processes_agree_on_their_products(config, tmp_path, monkeypatch, slow, decided):
    """oneDNN is slower in the second of two processes, or in none."""

    def faster(shapes):
        rank = os.environ["RANK"]
        return rank != slow, f"tried by {rank}"

    monkeypatch.setattr(products, "SMALL", 1)
    monkeypatch.setattr(products, "faster", faster)
    given = replace(config, max_steps=1, batch_size=2, run_name="two", tuning_config=TuningConfig())
    said = "".join(all_well(in_world(2, lambda: finetune(given), tmp_path)))
    assert f"products: {decided}" in (tmp_path / "two" / "config.yaml").read_text()
    reason = "tried by 1; in one of 2" if slow == "1" else "tried by 0; so in all 2"
    assert said.count(f"({reason} processes, which must agree)") == 1


@pytest.mark.slow
def test_script_runs_from_within_the_package(config, tmp_path):
    """As the source document writes it, with the blank argument of its stray `\\ `."""
    words = command_line(config, "b", max_steps=1, learning_rate=1e-5, lr_scheduler="cosine")
    done = subprocess.run(
        [sys.executable, "flamingo.py", *words, "--workers", "1", "--batch_size", "1", " "],
        cwd=ROOT / "tuninglab",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "b" / "report.json").exists()


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "1"},
        {"RANK": "3", "WORLD_SIZE": "1"},
        {"RANK": "1", "SLURM_PROCID": "1"},
        {"LOCAL_RANK": "0"},
    ],
)
def test_a_process_alone_speaks_and_saves_whatever_a_job_template_left(
    config, monkeypatch, capsys, environment
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    report = finetune(replace(config, max_steps=1))
    run = Path(config.output_dir) / "a"
    assert json.loads((run / "report.json").read_text()) == report
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert "Adapter: " in capsys.readouterr().err


def test_processes_that_do_not_find_each_other_are_told_apart(config, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes, but .* they cannot train together"):
        finetune(config)

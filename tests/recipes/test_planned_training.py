"""What a training makes of its plan, and that the plan changes nothing of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tuninglab.config import FinetuneConfig, PlanConfig
from tuninglab.config.flags import parse
from tuninglab.config.tuning import TuningConfig
from tuninglab.inspection.machine_speed import Speed
from tuninglab.recipes import planned_machine, planned_run, planned_times, planned_training
from tuninglab.recipes.flamingo import finetune
from tuninglab.recipes.plan import plan

SPEED = Speed({"fp32": 1e9, "bf16": 2e9}, {"fp32": 1e9, "bf16": 5e8}, 1e10, 1e-6, 0.05)
DROPPING = TuningConfig(train_answer_tokens="false", lora_dropout=0.3)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of known speed, measuring which draws random numbers; a process of one size."""
    monkeypatch.setattr(planned_run, "process_held", lambda model, resident: 2**28)
    monkeypatch.setattr(planned_run, "RUN_BESIDES", {True: 0})
    monkeypatch.setattr(planned_machine, "speed_of", lambda device: torch.randn(3) is None or SPEED)


@pytest.fixture
def short(config) -> FinetuneConfig:
    return replace(config, max_steps=2, score_questions=0, tuning_config=DROPPING)


def adapter(config) -> dict[str, torch.Tensor]:
    folder = Path(config.output_dir) / config.run_name / "adapter"
    return load_file(folder / "adapter_model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_says_its_plan_keeps_it_and_compares(short, capsys):
    report = finetune(short)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith(("Memory:", "Time:"))]
    assert [line.split(":")[0] for line in lines] == ["Memory", "Time"]
    assert said.index("Memory:") < said.index("step 1/2")
    assert "Planned: peak memory" in said.split("step 2/2")[1]
    kept = json.loads((Path(short.output_dir) / "a" / "report.json").read_text())["plan"]
    assert kept == report["plan"]
    # The same as the verb says of the same flags.
    names = ("model", "data", "precision", "max_steps", "batch_size", "learning_rate")
    values = {name: getattr(short, name) for name in (*names, "score_questions", "tuning_config")}
    figures, _, _ = plan(PlanConfig(**values))
    assert kept["peak_memory_mib"] == pytest.approx(figures["peak_memory_mib"]["total"], rel=0.02)
    assert kept["step_s"] == pytest.approx(figures["step_s"], rel=0.1)


def test_a_plan_that_fails_is_said_and_stops_nothing(short, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no such operation\nand more")

    finetune(replace(short, run_name="planned"))
    monkeypatch.setattr(planned_times, "step_cost", broken)
    report = finetune(replace(short, run_name="unplanned"))
    said = capsys.readouterr().err
    assert "Not planned: RuntimeError: no such operation\n" in said
    assert report["plan"] is None
    # Nothing that the plan does reaches the generator of the run.
    names = ("planned", "unplanned")
    assert equal(*(adapter(replace(short, run_name=name)) for name in names))


def test_a_run_that_will_not_fit_warns_and_goes_on(short, monkeypatch, capsys):
    monkeypatch.setattr(planned_machine, "free_memory_bytes", lambda device: 0)
    monkeypatch.setattr(planned_machine, "held_memory_bytes", lambda device: 1000)
    assert finetune(short)["train"]["steps"] == 2
    assert "Warning: it may be ended for lack of memory" in capsys.readouterr().err


def test_the_batch_size_that_fits_is_kept_and_goes_on(short, capsys):
    finetune(replace(short, batch_size="auto", run_name="auto", max_steps=1))
    assert "batch size: 12 (--batch_size auto" in capsys.readouterr().err
    folder = Path(short.output_dir)
    assert yaml.safe_load((folder / "auto" / "config.yaml").read_text())["batch_size"] == 12
    # As the number says it, also where the run goes on under the same flags.
    finetune(replace(short, batch_size=12, run_name="number", lr_scheduler="constant"))
    words = ["--resume", "--run_name", "auto", "--output_dir", short.output_dir]
    finetune(
        parse("finetune", FinetuneConfig, [*words, "--batch_size", "auto", "--max_steps", "2"])
    )
    assert "batch size" not in capsys.readouterr().err


def test_auto_and_its_number_learn_the_same(short):
    finetune(replace(short, batch_size="auto", run_name="auto"))
    finetune(replace(short, batch_size=12, run_name="number"))
    names = ("auto", "number")
    assert equal(*(adapter(replace(short, run_name=name)) for name in names))


def test_without_a_plan_auto_is_the_usual_size(short, monkeypatch, capsys):
    monkeypatch.setattr(planned_training, "measure_data", lambda *args: 1 / 0)
    report = finetune(replace(short, batch_size="auto"))
    said = capsys.readouterr().err
    assert "Not planned: ZeroDivisionError" in said
    assert "batch size: 16" in said
    assert report["train"]["samples"] == 24

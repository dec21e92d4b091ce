import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

from tuninglab import cli
from tuninglab.adapters.saving import load_adapter
from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.data.splits import read_splits
from tuninglab.errors import DataError, UserError
from tuninglab.evaluation.answers import generate_answers
from tuninglab.int8.quantiser import Int8Config, int8_layers
from tuninglab.models.build import load_flamingo
from tuninglab.recipes import flamingo
from tuninglab.recipes.flamingo import finetune
from tuninglab.reporting.report import write_report
from tuninglab.run_folder import RunFolder
from tuninglab.serving.open_model import open_model
from tuninglab.training import hardware

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tiny_bases, tiny_data, tmp_path) -> FinetuneConfig:
    return FinetuneConfig(
        model=str(tiny_bases["plain"]),
        data=str(tiny_data),
        output_dir=str(tmp_path),
        run_name="a",
        precision="fp32",
        max_steps=3,
        batch_size=4,
        learning_rate=3e-3,
    )


def test_run_folder_is_complete_and_its_adapter_loads_with_peft_alone(config, tmp_path):
    report = finetune(replace(config, val_split=0.25))
    run = tmp_path / "a"
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "environment.json", "trainable.json", "metrics.jsonl", "adapter"),
        *("checkpoints", "report.json", "report.html", "loss.png"),
    }
    assert json.loads((run / "report.json").read_text()) == report
    assert (report["run_name"], report["task"]) == ("a", "colours.jsonl")
    assert (report["base"], report["precision"]) == (config.model, "fp32")
    figures = report["train"]
    assert (figures["steps"], figures["samples"]) == (3, 9)
    assert figures["trainable_parameters"] == 15_746
    assert set(report["evaluation"]) == {"before", "after", "controls"}
    assert report["evaluation"]["after"]["val_loss"] < report["evaluation"]["before"]["val_loss"]
    assert report["adapter_bytes"] == sum(f.stat().st_size for f in (run / "adapter").iterdir())
    base, _ = load_flamingo(config.model)
    loaded = PeftModel.from_pretrained(base, str(run / "adapter"))
    weights = load_file(run / "checkpoints" / "step-000003" / "trainable.safetensors")
    parameters = dict(loaded.named_parameters())
    assert all(torch.equal(parameters[name], weight) for name, weight in weights.items())


def test_a_task_of_its_own_is_scored_before_and_after(config, tmp_path):
    class Task:
        splits = read_splits(config.data)
        answers = []

        def before(self, answer):
            self.answers.append(answer(self.splits.train, 4))
            return {"exact_match": 0.1}

        def after(self, answer):
            self.before(answer)
            return {"after": {"exact_match": 0.9}, "controls": {"blank": {}}, "prior": {}}

        def write_cards(self, run_dir):
            return [{"question": "colour?"}]

    task = Task()
    report = finetune(replace(config, data=None), task)
    assert report["evaluation"] == {
        "before": {"exact_match": 0.1},
        "after": {"exact_match": 0.9},
        "controls": {"blank": {}},
        "prior": {},
    }
    # Asked before and after training: by the base, then by what it was tuned to.
    base, processor = load_flamingo(config.model)
    for answers, adapter in zip(task.answers, (None, tmp_path / "a" / "adapter"), strict=True):
        model = base if adapter is None else load_adapter(base, adapter).eval()
        expected = generate_answers(model, processor, task.splits.train, max_new_tokens=4)
        assert answers == expected and len(answers) == 12
    assert json.loads((tmp_path / "a" / "answers.json").read_text())[0]["question"] == "colour?"


def test_parts_train_their_new_bridge_and_leave_a_whole_base(config, tiny_bases, tmp_path, capsys):
    model, processor = load_flamingo(tiny_bases["plain"])
    text = model.config.text_config
    language = AutoModelForCausalLM.from_config(text)
    language.save_pretrained(tmp_path / "lm")
    AutoTokenizer.from_pretrained(tiny_bases["plain"]).save_pretrained(tmp_path / "lm")
    CLIPVisionModel(model.config.vision_config).save_pretrained(tmp_path / "clip")
    processor.image_processor.save_pretrained(tmp_path / "clip")
    parts = {"lang_encoder": str(tmp_path / "lm"), "vision_encoder": str(tmp_path / "clip")}
    report = finetune(
        replace(config, model="embedded", cross_attn_every_n_layers=1, max_steps=2, **parts)
    )
    assert "closed gate" in capsys.readouterr().err
    run = tmp_path / "a"
    base, _ = load_flamingo(report["base"])
    assert Path(report["base"]) == run / "base"
    assert all(block.attn_gate.item() == 0 for block in base.gated_blocks)
    tuned = PeftModel.from_pretrained(base, str(run / "adapter"))
    weights = load_file(run / "checkpoints" / "step-000002" / "trainable.safetensors")
    assert any(".perceiver." in name for name in weights)
    parameters = dict(tuned.named_parameters())
    assert all(torch.equal(parameters[name], weight) for name, weight in weights.items())
    resumed = replace(config, model="embedded", data=None, run_name="a", resume=True, max_steps=3)
    defaults = FinetuneConfig(output_dir=config.output_dir)
    names = ("batch_size", "learning_rate", "precision")
    resumed = replace(resumed, **{name: getattr(defaults, name) for name in names})
    assert finetune(resumed)["train"]["steps"] == 3


def test_a_resumed_run_keeps_its_decisions_and_adds_its_start(config, tmp_path):
    """`auto` is asked of the machine once; what each start ran on stays."""
    finetune(replace(config, precision="auto", max_steps=1))
    decided = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["precision"]
    (first,) = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert decided != "auto"
    assert decided in {c["value"] for c in first["choices"] if c["choice"] == "precision"}
    go_on = FinetuneConfig(run_name="a", output_dir=config.output_dir, resume=True, max_steps=2)
    report = finetune(go_on)
    assert (report["precision"], report["train"]["steps"]) == (decided, 2)
    starts = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert starts[0] == first and len(starts) == 2
    asked = [c for c in starts[1]["choices"] if c["choice"] == "precision"]
    assert asked == [{"choice": "precision", "value": decided, "reason": "asked for"}]


@pytest.mark.parametrize("savers", [["norm", "loss"], []])
def test_a_run_of_version_0_1_goes_on_answers_and_reports(config, tmp_path, savers):
    """Its config.yaml has `lean` and `precision: auto`, its environment.json is one object."""
    config = replace(config, memory_savers=savers, max_steps=2, lr_scheduler="constant")
    finetune(replace(config, run_name="whole", max_steps=3))
    finetune(config)
    run = tmp_path / "a"
    settings = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("memory_savers", "keep_checkpoints"):
        settings.pop(name)
    settings |= {"precision": "auto", "lean": savers}
    (run / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (start,) = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(start))

    assert not open_model(str(run))[0].training
    write_report(run)
    assert start["versions"]["torch"] in (run / "report.html").read_text()
    with pytest.MonkeyPatch.context() as patch:
        # As on the machine that it was started on.
        patch.setattr(hardware, "_has_bf16", lambda device: False)
        go_on = FinetuneConfig(run_name="a", output_dir=config.output_dir, resume=True, max_steps=3)
        finetune(go_on)
    starts = json.loads((run / "environment.json").read_text())
    assert starts[0] == start and len(starts) == 2
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert (settings["precision"], settings["memory_savers"]) == ("fp32", savers)
    adapters = [
        load_file(p / "adapter" / "adapter_model.safetensors") for p in (run, tmp_path / "whole")
    ]
    assert all(torch.equal(adapters[0][name], weight) for name, weight in adapters[1].items())


def test_wrong_data_is_told_before_a_model_is_loaded(config, monkeypatch):
    monkeypatch.setattr(flamingo, "load_model", None)
    with pytest.raises(UserError, match="nothing.json"):
        finetune(replace(config, data="nothing.json"))
    assert not (Path(config.output_dir) / "a").exists()


def test_resume_without_a_checkpoint_is_told_before_a_model_is_loaded(config, monkeypatch):
    run = RunFolder.plan(config)
    run.create(config)
    monkeypatch.setattr(flamingo, "load_model", None)
    with pytest.raises(UserError, match="no checkpoint"):
        finetune(replace(config, resume=True))


def test_samples_left_out_for_their_length_are_reported(config, tiny_data):
    long = [{"role": "user", "content": "word " * 99}, {"role": "assistant", "content": "red"}]
    longer = tiny_data.parent / "longer.jsonl"
    lines = [tiny_data.read_text(), json.dumps({"messages": long}), "{}"]
    longer.write_text("\n".join(lines))
    settings = {"max_steps": 1, "max_tokens": 100, "skip_bad_records": True}
    report = finetune(replace(config, data=str(longer), **settings))
    assert report["data"] == {"train": 12, "val": 0, "skipped": 2}


def test_an_old_run_survives_a_mistake(config, tmp_path):
    finetune(replace(config, max_steps=1))
    with pytest.raises(UserError):
        finetune(replace(config, overwrite=True, model=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="tokens"):
        finetune(replace(config, overwrite=True, max_tokens=3))
    assert (tmp_path / "a" / "report.json").exists()


def test_a_wrong_pattern_leaves_no_folder_behind(config, tmp_path):
    wrong = TuningConfig(lora_target_modules=["qproj"])
    with pytest.raises(UserError, match="did you mean q_proj"):
        finetune(replace(config, run_name="new", tuning_config=wrong))
    assert not (tmp_path / "new").exists()


def test_too_long_samples_are_left_out_on_demand(config, capsys):
    # Only the row without a picture is one token shorter.
    lengths = {"max_tokens": 17, "skip_bad_records": True}
    for longest in range(10, 20):
        lengths["max_tokens"] = longest
        try:
            report = finetune(replace(config, max_steps=1, epochs=1, **lengths))
        except DataError:
            continue
        break
    assert 0 < report["train"]["samples"] < 12
    assert "left out" in capsys.readouterr().err


def command_line(config: FinetuneConfig, name: str, **flags) -> list[str]:
    flags = {"run_name": name, "model": config.model, "data": config.data, **flags}
    flags = {"output_dir": config.output_dir, "precision": "fp32", "max_steps": 4, **flags}
    return [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]


# An int8 gradient is rounded on each row by itself; what differs between the two runs in the last
# bit may round to the next step.
@pytest.mark.parametrize(
    ("flags", "loss_error"),
    [({}, 1e-5), pytest.param({"enable_int8": True}, 1e-4, marks=pytest.mark.slow)],
)
def test_two_processes_equal_one_with_twice_the_batch(config, tmp_path, flags, loss_error):
    """12 samples, 2 x 5 rows a step: the second step of an epoch is short and uneven."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = {"val_data": config.data, **flags}
    words = [*torchrun, "fine_tuning.py", *command_line(config, "two", batch_size=5, **flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = {"batch_size": 10, "max_steps": 4, "learning_rate": 2e-4, **flags}
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


SCORED = """
import json, sys
from tests.tiny import Colours
from tuninglab.config import FinetuneConfig
from tuninglab.recipes.flamingo import finetune

settings = json.loads(sys.argv[1])
finetune(FinetuneConfig(**settings), Colours(sys.argv[2]))
"""


@pytest.mark.slow
def test_scores_of_two_processes_are_those_of_one(config, tmp_path):
    """Eleven questions, an uneven share for each: answers come back whole and in order."""
    (tmp_path / "scored.py").write_text(SCORED)
    samples = Path(config.data).read_text().splitlines()[:11]
    data = Path(config.data).parent / "eleven.jsonl"
    data.write_text("\n".join(samples))
    given = {"model": config.model, "output_dir": config.output_dir, "precision": "fp32"}
    # At this rate the answers after are others than before.
    given |= {"max_steps": 8, "learning_rate": 2e-2}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    evaluations = []
    for name, batch_size, launch in (
        ("one", 8, []),
        ("two", 4, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]),
    ):
        settings = json.dumps(given | {"run_name": name, "batch_size": batch_size})
        words = [*launch, str(tmp_path / "scored.py"), settings, str(data)]
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr[-3000:]
        evaluations.append(json.loads((tmp_path / name / "report.json").read_text())["evaluation"])
    one, two = evaluations
    assert one == two
    assert len(one["before"]["answers"]) == 11 and len(set(one["before"]["answers"])) > 1
    assert one["after"]["answers"] != one["before"]["answers"]


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


def test_tuning_config_is_what_is_tuned(config):
    report = finetune(replace(config, max_steps=1, tuning_config=TuningConfig(r=2)))
    # LoRA scales with its rank; two gates do not.
    assert report["train"]["trainable_parameters"] == (15_746 - 2) // 8 + 2


@torch.no_grad()
def answers(model):
    ids = torch.randint(0, 250, (2, 8), generator=torch.Generator().manual_seed(3))
    return model.eval()(input_ids=ids).logits


def test_int8_learns_and_its_adapter_fits_the_float_base(config, tmp_path, capsys):
    report = finetune(replace(config, enable_int8=True, max_steps=12))
    assert report["quantization"] == "int8"
    assert report["train"]["last_loss"] < report["train"]["first_loss"] - 0.1
    said = capsys.readouterr().err
    assert re.search(r"base weights: int8 in \d+ linear layers, else float32", said)
    choices = json.loads((tmp_path / "a" / "environment.json").read_text())[-1]["choices"]
    assert "base weights" in {choice["choice"] for choice in choices}
    base, _ = load_flamingo(config.model)
    plain = answers(base)
    on_floats = answers(PeftModel.from_pretrained(base, str(tmp_path / "a" / "adapter")))
    model, _ = load_flamingo(config.model, quantization=Int8Config(["vision_encoder", "perceiver"]))
    on_int8 = answers(load_adapter(model, tmp_path / "a" / "adapter"))
    assert (on_int8 - on_floats).norm() < 0.1 * (on_floats - plain).norm()
    # What the run held in int8 is loaded as it is saved.
    opened, _ = open_model(str(tmp_path / "a"))
    assert "tuned on them in int8" in capsys.readouterr().err
    assert torch.equal(answers(opened), on_floats)


def test_int8_goes_on_where_it_stopped(config, tmp_path):
    config = replace(config, enable_int8=True, lr_scheduler="constant")
    finetune(replace(config, max_steps=2))
    whole = finetune(replace(config, max_steps=4, run_name="b"))
    go_on = FinetuneConfig(run_name="a", output_dir=config.output_dir, resume=True, max_steps=4)
    assert finetune(go_on)["train"]["last_loss"] == whole["train"]["last_loss"]


def test_parts_in_int8_leave_an_int8_base(config, tiny_bases, tiny_flamingo, take_apart, tmp_path):
    lang, clip = take_apart(tiny_flamingo(), tmp_path)
    AutoTokenizer.from_pretrained(tiny_bases["plain"]).save_pretrained(lang)
    load_flamingo(tiny_bases["plain"])[1].image_processor.save_pretrained(clip)
    parts = {"lang_encoder": str(lang), "vision_encoder": str(clip)}
    asked = {"enable_int8": True, "cross_attn_every_n_layers": 1, "max_steps": 2}
    report = finetune(replace(config, model="embedded", **asked, **parts))
    base, _ = load_flamingo(report["base"])
    layers = [name for name, _ in int8_layers(base)]
    assert len(layers) == 2 * 7 and not any("gated" in name for name in layers)
    opened, _ = open_model(str(tmp_path / "a"))
    assert [
        name.replace(".base_layer", "") for name, _ in int8_layers(opened.get_base_model())
    ] == layers
    assert (
        finetune(
            FinetuneConfig(run_name="a", output_dir=config.output_dir, resume=True, max_steps=3)
        )["train"]["steps"]
        == 3
    )


def test_int8_against_another_format_ends_with_2(config, capsys):
    words = command_line(config, "c", enable_int8=True, quantization="bnb-nf4")
    assert cli.main(["finetune", *words]) == 2
    assert "contradict" in capsys.readouterr().err


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

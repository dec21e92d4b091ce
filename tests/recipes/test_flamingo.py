import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

from tests.kernels.test_products import needs_onednn
from tuninglab.adapters.saving import load_adapter
from tuninglab.cli import main
from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.data.reading.splits import read_splits
from tuninglab.errors import DataError, UserError
from tuninglab.evaluation.answers import generate_answers
from tuninglab.evaluation.task import Task
from tuninglab.models.build import load_flamingo
from tuninglab.recipes import flamingo
from tuninglab.recipes.flamingo import finetune
from tuninglab.reporting.report import write_report
from tuninglab.run_folder import RunFolder
from tuninglab.serving.open_model import open_model
from tuninglab.training import hardware


def test_run_folder_is_complete_and_its_adapter_loads_with_peft_alone(config, tmp_path):
    report = finetune(replace(config, val_split=0.25))
    run = tmp_path / "a"
    assert {path.name for path in run.iterdir()} == {
        *(".tuninglab", "fingerprints.json"),
        *("config.yaml", "environment.json", "trainable.json", "metrics.jsonl", "adapter"),
        *("checkpoints", "report.json", "report.html", "loss.png", "answers.json", "pictures"),
    }
    assert json.loads((run / "report.json").read_text()) == report
    assert (report["run_name"], report["task"]) == ("a", "colours.jsonl")
    assert (report["base"], report["precision"]) == (config.model, "fp32")
    figures = report["train"]
    assert (figures["steps"], figures["samples"]) == (3, 9)
    assert figures["trainable_parameters"] == 15_746
    assert set(report["evaluation"]) == {"before", "after", "controls", "prior", "chance"}
    assert report["evaluation"]["after"]["val_loss"] < report["evaluation"]["before"]["val_loss"]
    assert report["adapter_bytes"] == sum(f.stat().st_size for f in (run / "adapter").iterdir())
    base, _ = load_flamingo(config.model)
    loaded = PeftModel.from_pretrained(base, str(run / "adapter"))
    weights = load_file(run / "checkpoints" / "step-000003" / "trainable.safetensors")
    parameters = dict(loaded.named_parameters())
    assert all(torch.equal(parameters[name], weight) for name, weight in weights.items())


def test_a_task_of_its_own_is_scored_before_and_after(config, tmp_path):
    class Scored(Task):
        answers = []

        def before(self, answer):
            self.answers.append(answer(self.splits.train, 4))
            return {"exact_match": 0.1}

        def after(self, answer):
            self.before(answer)
            return {"after": {"exact_match": 0.9}, "controls": {"blank": {}}, "prior": {}}

        def write_cards(self, run_dir):
            return [{"question": "colour?"}]

    task = Scored(read_splits(config.data))
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


def test_exact_memory_savers_are_on_and_change_no_number(config, tmp_path):
    plain = finetune(replace(config, memory_savers=[], run_name="plain"))["train"]
    usual = finetune(config)["train"]
    for name in ("first_loss", "last_loss"):
        assert usual[name] == pytest.approx(plain[name], rel=1e-5)
    adapters = [tmp_path / n / "adapter" / "adapter_model.safetensors" for n in ("a", "plain")]
    ours, theirs = map(load_file, adapters)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)
    (start,) = json.loads((tmp_path / "a" / "environment.json").read_text())
    said = {c["choice"]: c["reason"] for c in start["choices"] if "memory saver" in c["choice"]}
    assert said == dict.fromkeys(
        ["memory saver norm", "memory saver loss"], "the same numbers, less memory"
    )


@needs_onednn
def test_a_resumed_run_multiplies_as_it_began(config, tmp_path):
    config = replace(config, products="onednn", max_steps=1, lr_scheduler="constant")
    finetune(replace(config, run_name="whole", max_steps=2))
    finetune(config)
    finetune(FinetuneConfig(run_name="a", output_dir=config.output_dir, resume=True, max_steps=2))
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["products"] == "onednn"
    places = (tmp_path / run / "adapter" / "adapter_model.safetensors" for run in ("a", "whole"))
    resumed, whole = map(load_file, places)
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


@pytest.mark.parametrize("savers", [["norm", "loss"], []])
def test_a_run_of_version_0_1_goes_on_answers_and_reports(config, tmp_path, savers):
    """Its config.yaml has `lean` and `precision: auto`, its environment.json is one object."""
    config = replace(config, memory_savers=savers, max_steps=2, lr_scheduler="constant")
    finetune(replace(config, run_name="whole", max_steps=3))
    finetune(config)
    run = tmp_path / "a"
    settings = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("memory_savers", "keep_checkpoints", "products"):
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


def test_tuning_config_is_what_is_tuned(config):
    tuning = TuningConfig(r=2, train_answer_tokens="false")
    report = finetune(replace(config, max_steps=1, tuning_config=tuning))
    # LoRA scales with its rank; two gates do not.
    assert report["train"]["trainable_parameters"] == (15_746 - 2) // 8 + 2


def test_a_checkpoint_is_talked_to_as_the_run_was_then(config, tmp_path, capsys):
    finetune(replace(config, save_steps=1, keep_checkpoints=3))
    run = tmp_path / "a"
    last, first = (open_model(str(run / "checkpoints" / f"step-00000{n}"))[0] for n in (3, 1))
    final = dict(open_model(str(run))[0].named_parameters())
    assert all(torch.equal(final[name], value) for name, value in last.named_parameters())
    assert any(not torch.equal(final[name], value) for name, value in first.named_parameters())
    # A folder as any other of PEFT, also by its own name.
    inner, _ = open_model(str(run / "checkpoints" / "step-000001" / "adapter"))
    values = dict(first.named_parameters())
    assert all(torch.equal(values[name], value) for name, value in inner.named_parameters())
    capsys.readouterr()
    words = ["chat", str(run / "checkpoints" / "step-000001"), "--ask", "colour?"]
    assert main([*words, "--max_new_tokens", "2"]) == 0
    assert capsys.readouterr().out.strip()
    # The run was stopped: its checkpoint is named. An old one has no adapter.
    shutil.rmtree(run / "adapter")
    with pytest.raises(UserError, match=r"answers too: .*checkpoints/step-000003"):
        open_model(str(run))
    shutil.rmtree(run / "checkpoints" / "step-000001" / "adapter")
    with pytest.raises(UserError, match="step-000001 holds no adapter/.*--resume --run_name a"):
        open_model(str(run / "checkpoints" / "step-000001"))

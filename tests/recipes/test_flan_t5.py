"""The text recipe from settings to run folder, on a tiny T5; and that the shipped base is ready."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, ByT5Tokenizer, T5Config

from tuninglab.cli import main
from tuninglab.config import FinetuneConfig, FlanT5Config
from tuninglab.config.tuning import TextTuningConfig
from tuninglab.config.yaml_file import config_yaml
from tuninglab.embedded import text_base_directory, text_task
from tuninglab.embedded.text_task import DateTask
from tuninglab.errors import DataError, UserError
from tuninglab.evaluation.texts import generate_texts
from tuninglab.int8.linear import Int8Linear
from tuninglab.models.text_to_text import TextToText, load_text_to_text
from tuninglab.recipes import flan_t5 as module
from tuninglab.recipes import planned_training
from tuninglab.recipes.common import open_run, prepare
from tuninglab.recipes.flan_t5 import flan_t5

ROOT = Path(__file__).parents[2]
COST = {"config": "enable_int8 = True", "step_s": 1.5}


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory):
    """Directory of a T5 with a head of its own, 16 numbers wide, that reads bytes."""
    torch.manual_seed(0)
    config = T5Config(
        **{"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
        **{"vocab_size": 259, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.1},
        **{"tie_word_embeddings": False, "decoder_start_token_id": 0},
    )
    folder = tmp_path_factory.mktemp("t5")
    TextToText(config).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A JSONL file of twelve pairs, the last one as a dialogue."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    records: list[dict] = [
        {"source": f"say {n}", "target": "yes " * (n % 3 + 1)} for n in range(11)
    ]
    turns = [("user", "say 11"), ("assistant", "no")]
    records.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.fixture
def config(tiny_t5, pairs, tmp_path) -> FlanT5Config:
    return FlanT5Config(
        model=str(tiny_t5),
        data=str(pairs),
        output_dir=str(tmp_path),
        run_name="a",
        precision="fp32",
        max_steps=4,
        batch_size=4,
        learning_rate=1e-2,
    )


@pytest.mark.parametrize("quantization", ["int8", "none"])
def test_run_folder_is_complete_and_its_adapter_loads_with_peft_alone(
    config, tmp_path, quantization
):
    config = replace(config, val_split=0.25, quantization=quantization)
    report = flan_t5(config)
    run = tmp_path / "a"
    assert {path.name for path in run.iterdir()} == {
        *(".tuninglab", "fingerprints.json"),
        *("config.yaml", "environment.json", "trainable.json", "metrics.jsonl", "adapter"),
        *("checkpoints", "report.json", "report.html", "loss.png", "answers.json"),
    }
    assert json.loads((run / "report.json").read_text()) == report
    assert (report["task"], report["base"]) == ("pairs.jsonl", config.model)
    assert report["quantization"] == quantization
    # q, k, v, o of 2 + 2 x 2 attentions and three layers of 4 feed-forwards, with r = 16.
    layers = 6 * 4 * 16 * (16 + 16) + 4 * 3 * 16 * (16 + 32)
    assert report["train"]["trainable_parameters"] == layers
    assert report["evaluation"]["after"]["val_loss"] < report["evaluation"]["before"]["val_loss"]
    # Nine training pairs: steps of 4, 4, 1 and 4; bytes and end token of source and target.
    assert (report["train"]["samples"], report["train"]["steps"]) == (13, 4)
    # The adapter stands on the float base, whatever it was tuned on.
    base, _ = load_text_to_text(config.model)
    loaded = PeftModel.from_pretrained(base, str(run / "adapter"))
    weights = load_file(run / "checkpoints" / "step-000004" / "trainable.safetensors")
    parameters = dict(loaded.named_parameters())
    assert weights and all(torch.equal(parameters[name], w) for name, w in weights.items())
    settings = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_2_SEQ_LM"
    assert settings["base_model_name_or_path"] == config.model


def test_a_demonstration_has_ended_once_its_cost_is_in_the_report(config, monkeypatch, capsys):
    class Killed(BaseException):
        pass

    def killed(config):
        raise Killed

    # As the demonstration is, but tiny.
    monkeypatch.setattr(FlanT5Config, "is_demo", True)
    config = replace(config, val_split=0.25, max_steps=1, resume="auto")
    report = Path(config.output_dir) / "a" / "report.json"
    monkeypatch.setattr(module, "measured", killed)
    with pytest.raises(Killed):
        flan_t5(config)
    assert not report.exists()
    monkeypatch.setattr(module, "measured", lambda config: COST)
    figures = flan_t5(config)
    assert json.loads(report.read_text()) == figures and figures["cost"] == COST
    monkeypatch.setattr(module, "measured", killed)
    capsys.readouterr()
    assert flan_t5(config) == figures
    assert "has ended" in capsys.readouterr().err


def test_without_a_plan_auto_is_the_size_of_the_recipe(config, monkeypatch, capsys):
    monkeypatch.setattr(planned_training, "measure_data", lambda *args: 1 / 0)
    report = flan_t5(replace(config, batch_size="auto", max_steps=1))
    said = capsys.readouterr().err
    assert "Not planned: ZeroDivisionError" in said and "batch size: 32 (the recipe's own)" in said
    # All twelve pairs fit into one batch.
    assert report["train"]["samples"] == 12


def test_the_base_is_int8_unless_it_is_told_otherwise(config, pairs):
    task = module.open_data(config)
    # Four layers of 6 attentions, three of 4 feed-forwards, and the head.
    for quantization, expected in ((None, 24 + 12 + 1), ("none", 0)):
        asked, run = open_run(replace(config, quantization=quantization, overwrite=True))
        setup = prepare(module.FLAN_T5, asked, run, task)
        assert sum(isinstance(m, Int8Linear) for m in setup.model.modules()) == expected


def test_what_trains_in_full_keeps_its_gradient_beside_the_memory_savers(config, tmp_path):
    tuning = TextTuningConfig(modules_to_save=["final_layer_norm"])
    flan_t5(replace(config, tuning_config=tuning))
    base = load_file(Path(config.model) / "model.safetensors")
    saved = load_file(tmp_path / "a" / "adapter" / "adapter_model.safetensors")
    for stack in ("encoder", "decoder"):
        name = f"{stack}.final_layer_norm.weight"
        assert not torch.equal(saved[f"base_model.model.{name}"], base[name])


def test_tokens_of_source_and_target_are_counted(config, tmp_path):
    flan_t5(replace(config, max_steps=3))
    last = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[-1])
    sources = sum(len(f"say {n}") + 1 for n in range(12))
    targets = sum(len("yes " * (n % 3 + 1)) + 1 for n in range(11)) + len("no") + 1
    assert (last["samples"], last["tokens"]) == (12, sources + targets)


def test_stopped_and_resumed_equals_uninterrupted(config, tmp_path):
    short = replace(config, run_name="b", lr_scheduler="constant", warmup_steps=0)
    flan_t5(replace(short, max_steps=6))
    flan_t5(replace(short, run_name="c", max_steps=3))
    rest = FlanT5Config(output_dir=str(tmp_path), run_name="c", resume=True, max_steps=6)
    flan_t5(rest)
    adapters = [load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in "bc"]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_mistakes_are_told_before_a_model_is_loaded(config, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "load_text_to_text", None)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"source": "a"}\n{"source": "a", "target": "b"}\n')
    with pytest.raises(DataError, match="line 1: the target is missing"):
        flan_t5(replace(config, data=str(bad)))
    with pytest.raises(UserError, match="exists. Replace it"):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "config.yaml").write_text("")
        flan_t5(config)
    with pytest.raises(UserError, match="fp16 does not work on a CPU.*bf16"):
        flan_t5(replace(config, run_name="b", precision="fp16"))


def test_patterns_and_lengths_that_do_not_fit_leave_no_folder(config, tmp_path):
    wrong = TextTuningConfig(lora_target_modules=["w_0"])
    with pytest.raises(UserError, match="'w_0' hits no layer; did you mean wi_0") as caught:
        flan_t5(replace(config, tuning_config=wrong))
    assert "Linear layers end in: q, k, v, o" in str(caught.value)
    with pytest.raises(DataError, match="13 tokens, at most 10"):
        flan_t5(replace(config, max_tokens=10))
    assert not (tmp_path / "a").exists()


@pytest.fixture
def short_demo(monkeypatch, tmp_path):
    """A demonstration of three steps, its cost not measured."""
    monkeypatch.setattr(text_task, "TEST_PAIRS", 10)
    monkeypatch.setattr(text_task, "VAL_PAIRS", 5)
    monkeypatch.setattr(module, "measured", lambda config: COST)
    return FlanT5Config(output_dir=str(tmp_path), max_steps=3, embedded_pairs=100)


@pytest.mark.slow
def test_the_demonstration_reports_and_replaces_itself(short_demo, tmp_path, capsys):
    report = flan_t5(short_demo)
    run = tmp_path / "flan_t5"
    assert json.loads((run / "report.json").read_text()) == report
    assert report["cost"] == COST and report["run_name"] == "flan_t5"
    scores = report["evaluation"]
    for score in (scores["before"], scores["after"], scores["prior"]):
        assert score["count"] == 10 and len(score["by_type"]) == 5
    shown = capsys.readouterr().err
    assert "in a sentence" in shown and "report.html" in shown and "no FLAN-T5" in shown
    page = (run / "report.html").read_text()
    assert "What it wrote" in page and 'class="missing"' not in page
    assert flan_t5(short_demo)["run_name"] == "flan_t5"


@pytest.mark.parametrize("other", [FinetuneConfig(), FlanT5Config(data="mine.jsonl")])
def test_the_demonstration_leaves_other_runs_alone(short_demo, tmp_path, other):
    (tmp_path / "flan_t5").mkdir()
    (tmp_path / "flan_t5" / "config.yaml").write_text(config_yaml(other))
    with pytest.raises(UserError, match="a run of your own. Give a --run_name"):
        flan_t5(short_demo)


def test_a_name_or_data_of_ones_own_replaces_nothing(short_demo):
    for own in (replace(short_demo, run_name="x"), replace(short_demo, data="mine.jsonl")):
        assert module.named(own) == own


def test_compare_measures_instead_of_training(monkeypatch, capsys):
    import tuninglab.comparison

    seen = []
    monkeypatch.setattr(
        tuninglab.comparison, "compare", lambda c: seen.append(c) or {"rows": []}, raising=False
    )
    assert main(["flan-t5", "--compare", "--rounds", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": []}
    assert (seen[0].compare, seen[0].rounds) == (True, 2)


@pytest.mark.slow
def test_the_command_of_the_document(config):
    words = f"--run_name exp --output_dir {config.output_dir} --model {config.model}".split()
    words += f"--data {config.data} --max_steps 1 --enable_int8 false --precision fp32".split()
    done = subprocess.run(
        [sys.executable, "flan_t5.py", *words, "--json", " "],
        cwd=ROOT / "tuninglab",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["run_name"], report["quantization"]) == ("exp", "none")


def test_the_shipped_base_is_a_model_directory_that_knows_no_iso_dates():
    folder = text_base_directory()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2_000_000
    assert "_name_or_path" not in (folder / "config.json").read_text()
    model, tokenizer = load_text_to_text(folder, "fp32")
    assert model.lm_head.weight is not model.shared.weight
    alone = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(folder)("copy: river", return_tensors="pt")
    for loaded in (model, alone):
        ids = loaded.generate(**words, max_new_tokens=12, do_sample=False)
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == "river"
    day = ["write the date long, day first: Mar 3, 2021"]
    assert generate_texts(model, tokenizer, day, max_new_tokens=20) == ["3 March 2021"]
    task = DateTask(10)
    task.scored = task.scored[:50]

    def answer(pairs, most):
        return generate_texts(model, tokenizer, [pair.source for pair in pairs], 128, most)

    assert task.before(answer)["exact_match"] == 0.0


def test_the_best_validation_of_pairs_is_kept(tiny_t5, pairs, tmp_path):
    config = FlanT5Config(
        model=str(tiny_t5),
        data=str(pairs),
        val_split=0.25,
        output_dir=str(tmp_path),
        run_name="best",
        precision="fp32",
        max_steps=6,
        batch_size=3,
        # So high that the loss goes up and down.
        learning_rate=1.0,
        lr_scheduler="constant",
        eval_steps=1,
        eval_metric=["f1"],
        keep_best="val_loss",
        patience=3,
    )
    train = flan_t5(config)["train"]
    lines = [json.loads(line) for line in (tmp_path / "best" / "metrics.jsonl").open()]
    found = {line["step"]: line for line in lines if "val_loss" in line and line["step"]}
    assert all("val_token_f1" in line for line in found.values())
    best = min(found, key=lambda step: (found[step]["val_loss"], step))
    assert best < 6 and train["steps"] == min(best + 3, 6)
    assert train["best"] == {
        "step": best,
        "metric": "val_loss",
        "value": found[best]["val_loss"],
    }
    folder = tmp_path / "best"
    ends = [folder / "adapter", folder / "checkpoints" / f"step-{best:06d}" / "adapter"]
    weights = [(place / "adapter_model.safetensors").read_bytes() for place in ends]
    assert weights[0] == weights[1]

"""The verb `export`: what it writes opens elsewhere and answers as before, or nothing is there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.conversion.test_merging import logits
from tuninglab.adapters.kept_settings import adapter_prompt, tuned_media_mode
from tuninglab.adapters.lora import quietly, tune
from tuninglab.adapters.saving import save_adapter
from tuninglab.cli import main
from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.config.yaml_file import config_yaml
from tuninglab.conversion import export as verb
from tuninglab.conversion import trying
from tuninglab.conversion.trying import compared, prompts_of, tried
from tuninglab.errors import UserError
from tuninglab.models.build import load_flamingo
from tuninglab.recipes.flamingo import finetune
from tuninglab.serving.open_model import open_model


def under_peft(base, adapter):
    return quietly(PeftModel.from_pretrained, load_flamingo(base)[0], str(adapter)).eval()


def exported(run, out, *flags):
    assert main(["export", str(run), "--out", str(out), *flags]) == 0
    return out


@pytest.fixture
def run(run_folder, tmp_path):
    """A run folder of the tests' own."""
    return shutil.copytree(run_folder, tmp_path / "run")


def test_an_adapter_opens_after_it_was_copied_elsewhere(
    run, model_directory, tmp_path, monkeypatch, capsys
):
    (run / "adapter" / "tuninglab.json").write_text(
        '{"media_mode": "next-v1", "prompt": "openflamingo-vqa"}'
    )
    out = exported(run, tmp_path / "out")
    assert "8 of 8" in capsys.readouterr().err
    copied = shutil.copytree(out, tmp_path / "far" / "away")
    shutil.rmtree(out)
    shutil.rmtree(run)
    # Whatever is called the same here is not meant.
    monkeypatch.chdir(tmp_path / "far")
    opened, processor = open_model("away")
    assert (
        adapter_prompt(copied) == "openflamingo-vqa" and "Short answer:" in processor.chat_template
    )
    assert opened.get_base_model().config.media_mode == tuned_media_mode(copied) == "next-v1"
    alone = under_peft(model_directory, copied)
    alone.get_base_model().config.media_mode = "next-v1"
    assert torch.equal(logits(alone), logits(opened))


def test_an_adapter_takes_along_a_base_that_only_its_run_has(
    run, model_directory, tmp_path, monkeypatch
):
    expected = logits(open_model(str(run))[0])
    shutil.copytree(model_directory, run / "base")
    (run / "config.yaml").write_text(config_yaml(FinetuneConfig(model="gone/away/x")))
    out = exported(run, tmp_path / "out")
    shutil.rmtree(run)
    moved = shutil.move(out, tmp_path / "moved")
    # A folder of the same name here is another base.
    (tmp_path / "here" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert torch.equal(logits(open_model(str(moved))[0]), expected)
    again = exported(moved, tmp_path / "again")
    shutil.rmtree(moved)
    assert torch.equal(logits(open_model(str(again))[0]), expected)


@pytest.mark.parametrize("mode", ["previous", "next-v1"])
def test_a_merged_model_is_one_for_all_who_load_it(mode, run, model_directory, tmp_path):
    (run / "adapter" / "tuninglab.json").write_text(
        json.dumps({"media_mode": mode, "prompt": "openflamingo-vqa"})
    )
    reference = under_peft(model_directory, run / "adapter")
    reference.get_base_model().config.media_mode = mode
    expected = logits(reference)
    out = exported(run, tmp_path / "out", "--merge")
    model = AutoModelForImageTextToText.from_pretrained(out).eval()
    assert model.config.media_mode == mode
    assert (logits(model) - expected).abs().max() <= 1e-3
    processor = AutoProcessor.from_pretrained(out)
    asked = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    assert text.endswith("Question:Why? Short answer:")
    opened, its_processor = open_model(str(out))
    assert torch.equal(logits(opened), logits(model))
    assert its_processor.chat_template == processor.chat_template
    samples = prompts_of(None, 4)
    reference_answers = tried(reference, processor, samples)
    assert tried(model, processor, samples, reference_answers).answers == reference_answers.answers


def test_a_run_goes_on_from_a_merged_model(tiny_bases, tiny_data, tmp_path):
    tuning = TuningConfig(train_gates=True, train_answer_tokens="false")
    config = FinetuneConfig(
        model=str(tiny_bases["plain"]),
        data=str(tiny_data),
        val_split=0.3,
        output_dir=str(tmp_path),
        run_name="a",
        precision="fp32",
        max_steps=2,
        enable_int8=True,
        tuning_config=tuning,
    )
    finetune(config)
    out = exported(tmp_path / "a", tmp_path / "out", "--merge")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    reference = under_peft(tiny_bases["plain"], tmp_path / "a" / "adapter")
    assert (logits(load_flamingo(out)[0]) - logits(reference)).abs().max() <= 1e-3
    card = ModelCard.load(out / "README.md")
    assert "int8" in card.text and "9 records" not in card.text
    flags = ["--data", str(tiny_data), "--run_name", "b", "--output_dir", str(tmp_path)]
    assert main(["finetune", "--model", str(out), *flags, "--max_steps", "1"]) == 0
    assert (tmp_path / "b" / "report.json").exists()


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_open_flamingo_gets_all_that_was_tuned(
    family, make_flamingo, model_directory, tmp_path, capsys
):
    _, processor = load_flamingo(model_directory)
    tokens = len(processor.tokenizer)
    ids = {"image_token_id": processor.image_token_id, "eoc_token_id": processor.eoc_token_id}
    base = make_flamingo(
        family,
        text={"vocab_size": tokens, "pad_token_id": processor.tokenizer.pad_token_id},
        perceiver_heads=8,
        perceiver_dim_head=64,
        cross_attn_heads=8,
        cross_attn_dim_head=64,
        **ids,
    )
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    linear = {"llama": "q_proj", "gpt_neox": "query_key_value"}[family]
    tuning = TuningConfig(lora_target_modules=[linear, "to_q"], train_gates=True)
    tuned = tune(base, tuning, str(tmp_path / "base"))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    save_adapter(tuned, tmp_path / "adapter")
    out = exported(tmp_path / "adapter", tmp_path / "out", "--merge", "--to", "open_flamingo")
    parts = ["--lang_encoder", str(out / "lang_encoder")]
    parts += ["--vision_encoder", str(out / "vision_encoder"), "--out", str(tmp_path / "back")]
    assert main(["convert", "--checkpoint", str(out / "checkpoint.pt"), *parts]) == 0
    back = load_flamingo(tmp_path / "back")[0]
    assert (logits(back) - logits(tuned)).abs().max() <= 1e-3
    assert not (out / "config.json").exists()


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_nothing_is_written_over(what, run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    {"folder": out.mkdir, "file": out.touch, "link": lambda: out.symlink_to("gone")}[what]()
    monkeypatch.setattr(verb, "find_model", lambda name: pytest.fail("looked further"))
    assert main(["export", str(run), "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_what_was_not_tuned_is_refused(model_directory, tmp_path, capsys):
    assert main(["export", str(model_directory), "--out", str(tmp_path / "out")]) == 2
    assert "neither a run nor an adapter" in capsys.readouterr().err


def test_a_broken_merge_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    def broken(model, dtype=None):
        return model.unload()

    monkeypatch.setattr(verb, "merged", broken)
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--merge"]) == 1
    assert re.search(
        r"does not answer as the run does.*Nothing was written", capsys.readouterr().err
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_lost_prompt_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    (run / "adapter" / "tuninglab.json").write_text(
        '{"media_mode": "previous", "prompt": "openflamingo-vqa"}'
    )

    def forgetful(place):
        model, processor = load_flamingo(place)
        processor.use_prompt("tuninglab")
        return model, processor

    monkeypatch.setattr(verb, "load_flamingo", forgetful)
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--merge"]) == 1
    assert "the prompts come out otherwise" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_merged_model_has_the_format_that_was_asked_for(dtype, run, tmp_path, capsys):
    exported(run, tmp_path / "out", "--merge", "--dtype", dtype, "--json")
    figures = json.loads(capsys.readouterr().out)
    model, _ = load_flamingo(tmp_path / "out")
    expected = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert figures["dtype"] == str(expected).removeprefix("torch.")
    assert figures["check"]["passed"] and figures["check"]["prompts"] == 8


def test_the_bound_of_16_bits_still_sees_a_lost_merge(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verb, "merged", lambda model, dtype=None: model.unload().bfloat16())
    flags = ["--merge", "--dtype", "bf16"]
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *flags]) == 1
    assert "--dtype fp32" in capsys.readouterr().err


def test_figures_of_a_check():
    zeros = [0.0, 0.0]
    logits_of = [torch.tensor([[1.0, -30.0], zeros])]
    before = trying.Tried([[1]], [[0]], logits_of)
    close = trying.Tried([[1]], [[0]], [torch.tensor([[1.0005, -30.0], zeros])])
    fp32, bf16 = torch.float32, torch.bfloat16
    assert compared(before, close, [fp32])["passed"]
    assert compared(before, close, [fp32])["max_logit_difference"] == pytest.approx(5e-4, rel=1e-2)
    far = trying.Tried([[1]], [[0]], [torch.tensor([[1.01, -30.0], zeros])])
    assert not compared(before, far, [fp32])["passed"] and compared(before, far, [bf16])["passed"]
    assert compared(before, far, [fp32, bf16])["bound"] == 8 * 2**-7 * 30
    assert not compared(before, trying.Tried([[1]], [[1]], logits_of), [bf16])["passed"]
    nan = trying.Tried([[1]], [[0]], [torch.tensor([[float("nan"), -30.0], zeros])])
    assert not compared(before, nan, [bf16])["passed"]
    near = trying.Tried([[1]], [[0]], [torch.tensor([[1.0, 1.01, -30.0], [0.0, 0.0, 0.0]])])
    tipped = trying.Tried([[1]], [[1]], near.logits)
    assert compared(near, tipped, [bf16])["passed"]
    assert compared(near, tipped, [bf16])["ties"] == 1
    assert not compared(near, tipped, [fp32])["passed"]
    ended = trying.Tried([[1]], [[0, 1]], near.logits)
    assert not compared(near, ended, [bf16])["passed"]
    other = trying.Tried([[1, 1]], [[0]], [torch.zeros(3, 2)])
    assert not compared(before, other, [bf16])["passed"]


def test_the_prompts_are_the_runs_own_then_drawn_ones(run):
    (run / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(run / "pictures" / "000.png")
    cards = [{"question": f"q{k}?", "picture": "pictures/000.png"} for k in range(5)]
    # One that leads out of the folder, and what is no card.
    cards += [{"question": "out?", "picture": "../../x.png"}, {"question": 3}, "no card"]
    (run / "answers.json").write_text(json.dumps(cards))
    samples = prompts_of(run, 8)
    texts = [s.messages[0]["content"][-1]["text"] for s in samples]
    assert texts[:6] == ["q0?", "q1?", "q2?", "q3?", "q4?", "out?"]
    assert [len(s.images) for s in samples] == [1, 1, 1, 0, 1, 0, 1, 0]


def test_an_exported_adapter_knows_its_base_again(run, model_directory, tmp_path):
    base = shutil.copytree(model_directory, tmp_path / "base")
    (run / "config.yaml").write_text(config_yaml(FinetuneConfig(model=str(base))))
    out = exported(run, tmp_path / "out")
    expected = logits(open_model(str(out))[0])
    # The same weights in other files are the same base.
    model, _ = load_flamingo(base)
    model.save_pretrained(base, max_shard_size="200KB")
    (base / "model.safetensors").unlink(missing_ok=True)
    assert len(list(base.glob("*.safetensors"))) > 1
    assert torch.equal(logits(open_model(str(out))[0]), expected)
    for path in base.glob("*.safetensors*"):
        path.unlink()
    model.gated_blocks[0].attn_gate.data += 1e-3
    model.save_pretrained(base)
    with pytest.raises(UserError, match="tuned on a base with other weights.*delete base_weights"):
        open_model(str(out))
    file = out / "tuninglab.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in said.items() if k != "base_weights"}))
    open_model(str(out))


@pytest.mark.parametrize("flags", [[], ["--merge"]], ids=["adapter", "merged"])
def test_the_lines_of_a_card_run(flags, run, tmp_path):
    out = exported(run, tmp_path / "out", *flags)
    [program] = re.findall(r"```python\n(.*?)\n```", (out / "README.md").read_text(), re.DOTALL)
    Image.new("RGB", (20, 20), (200, 0, 0)).save(tmp_path / "picture.png")
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Response:" in done.stdout.replace(" ", "")

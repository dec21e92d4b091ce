"""The recipe on an int8 base."""

import json
import re
from dataclasses import replace

import torch
from peft import PeftModel
from transformers import AutoTokenizer

from tuninglab import cli
from tuninglab.adapters.saving import load_adapter
from tuninglab.config import FinetuneConfig
from tuninglab.int8.quantiser import Int8Config, int8_layers
from tuninglab.models.build import load_flamingo
from tuninglab.recipes.flamingo import finetune
from tuninglab.serving.open_model import open_model


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
    words = ["--enable_int8", "--quantization", "bnb-nf4", "--output_dir", config.output_dir]
    assert cli.main(["finetune", *words]) == 2
    assert "contradict" in capsys.readouterr().err

import json

import pytest
import torch
from transformers import CLIPVisionConfig, GPT2Config, LlamaConfig, T5Config

from tuninglab.errors import UserError
from tuninglab.inspection.meta_model import meta_model
from tuninglab.models import load_flamingo
from tuninglab.serving.open_model import open_model

SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}


def shapes(model):
    return {name: (p.shape, p.dtype) for name, p in model.named_parameters()}


@pytest.mark.parametrize("weights", [True, False])
def test_a_directory_needs_no_weights(model_directory, tmp_path, weights):
    where = model_directory
    if not weights:
        where = tmp_path / "bare"
        where.mkdir()
        (where / "config.json").write_bytes((model_directory / "config.json").read_bytes())
    model = meta_model(str(where))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert shapes(model) == shapes(load_flamingo(model_directory)[0])


@pytest.mark.parametrize(
    "config, kind",
    [
        (LlamaConfig(**SMALL, num_hidden_layers=1, vocab_size=9), "LlamaForCausalLM"),
        (T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, vocab_size=9), "TextToText"),
        (CLIPVisionConfig(**SMALL, num_hidden_layers=1), "CLIPVisionModel"),
        (GPT2Config(n_embd=8, n_head=2, n_layer=1, architectures=["GPT2Model"]), "GPT2Model"),
    ],
)
def test_any_model_of_transformers(tmp_path, config, kind):
    config.dtype = torch.bfloat16
    config.save_pretrained(tmp_path)
    model = meta_model(str(tmp_path))
    assert type(model).__name__.startswith(kind)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_run_has_the_names_and_shapes_of_the_opened_one(run_folder):
    tuned, _ = open_model(str(run_folder))
    model = meta_model(str(run_folder))
    assert shapes(model) == shapes(tuned)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "gate" in name for name in trained)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_foreign_code_is_named_and_not_run(tmp_path):
    (tmp_path / "code.py").write_text("raise SystemExit")
    config = {"model_type": "mosaic_gpt", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="'mosaic_gpt'.*not run.*--trust_remote_code"):
        meta_model(str(tmp_path))


def test_a_quantised_model_says_what_is_shown(tmp_path, capsys):
    config = LlamaConfig(**SMALL, num_hidden_layers=1, vocab_size=9)
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    config.save_pretrained(tmp_path)
    meta_model(str(tmp_path))
    assert "before its quantisation" in capsys.readouterr().err


def test_what_is_no_model_says_so(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"has no config\.json"):
        meta_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="incomplete or damaged"):
        meta_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": "x"}))
    with pytest.raises(UserError, match="model"):
        meta_model(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        meta_model(str(tmp_path / "file"))
    # A directory of a preset's name does not hide the preset.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama-7b").mkdir()
    assert meta_model("llama-7b").config.vocab_size == 32003
    assert "./llama-7b" in capsys.readouterr().err

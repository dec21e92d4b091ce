import copy
import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tuninglab.adapters.lora import quietly, tune
from tuninglab.adapters.saving import load_adapter, write_adapter
from tuninglab.config.tuning import DEFAULT_TARGET_MODULES, TuningConfig
from tuninglab.errors import UserError
from tuninglab.models.formats.layout import Checkpoint
from tuninglab.models.formats.multimodal_gpt import adapter, alpha_reason, describe

RANK, ALPHA = 3, 12
TUNING = {"lora": True, "lora_r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.1, "unfrozen": []}


def wrapped_as_multimodal_gpt_did(model, alpha=ALPHA, unfrozen=()):
    """LoRA around the language model alone, random, and what `unfrozen` trains besides."""
    lora = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=list(DEFAULT_TARGET_MODULES))
    model.lang_encoder = quietly(get_peft_model, model.lang_encoder, lora)
    generator = torch.Generator().manual_seed(5)
    saved = {}
    for name, parameter in model.named_parameters():
        trained = "lora_" in name or any(part in name for part in unfrozen)
        if trained:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
            saved[name] = parameter.detach().clone()
    return model, saved


@torch.no_grad()
def logits(model):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 250, (2, 8), generator=generator)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    ids[:, 4] = base.config.image_token_id
    pixels = torch.randn(2, 1, 1, 3, 16, 16, generator=generator)
    return model.eval()(input_ids=ids, pixel_values=pixels).logits


def without_default(saved):
    return {name.replace(".default", ""): value for name, value in saved.items()}


@pytest.mark.parametrize("spelling", [dict, without_default], ids=["default", "peft-0.2"])
@pytest.mark.parametrize("unfrozen", [(), ("perceiver", "embed_tokens", "attn_gate", "to_q")])
def test_peft_gives_the_model_that_multimodal_gpt_had(tiny_flamingo, tmp_path, spelling, unfrozen):
    base = tiny_flamingo()
    base.config.media_mode = "next-v1"
    theirs, saved = wrapped_as_multimodal_gpt_did(copy.deepcopy(base), unfrozen=unfrozen)
    expected = logits(theirs)
    # As training and as inference knew it: saved one level deeper.
    extras = {"tuning_config": {"tuning_config": TUNING}}
    checkpoint = Checkpoint("lora.pt", spelling(saved), extras)
    layout = describe(checkpoint)
    assert alpha_reason(checkpoint) == "tuning_config in the checkpoint"
    assert {key.fate for key in layout.keys} == {"used"}
    assert [key.name for key in layout.keys] == list(checkpoint.tensors)
    config, tensors = adapter(checkpoint, layout)
    write_adapter(tmp_path / "adapter", LoraConfig(**config), tensors, layout.media_mode)
    # PEFT alone, then our loader on a base whose media mode is another one.
    loaded = quietly(PeftModel.from_pretrained, copy.deepcopy(base), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded), expected, atol=1e-6, rtol=1e-6)
    ours = load_adapter(tiny_flamingo(), tmp_path / "adapter")
    torch.testing.assert_close(logits(ours), expected, atol=1e-6, rtol=1e-6)
    assert ours.get_base_model().config.media_mode == "next-v1"
    assert not torch.allclose(logits(base), expected, atol=1e-2)


def test_the_adapter_is_like_one_of_ours(tiny_flamingo):
    _, saved = wrapped_as_multimodal_gpt_did(tiny_flamingo(), alpha=16)
    checkpoint = Checkpoint("lora.pt", saved)
    config, tensors = adapter(checkpoint, describe(checkpoint))
    assert "lora_config.py" in alpha_reason(checkpoint)
    ours = tune(tiny_flamingo(), TuningConfig(r=RANK)).peft_config["default"]
    assert {name: getattr(ours, name) for name in config} == {
        **config,
        "peft_type": "LORA",
        "target_modules": set(config["target_modules"]),
    }
    assert json.dumps(config)
    trained = tune(tiny_flamingo(), TuningConfig(r=RANK, train_gates=False))
    names = {n.replace(".default", "") for n, p in trained.named_parameters() if p.requires_grad}
    assert set(tensors) == names


def released():
    """The tensors of mmgpt-lora-v0 by construction, without memory."""
    tensors = {}

    def add(name, outputs, inputs):
        stem = f"lang_encoder.base_model.model.model.layers.{name}"
        for end, shape in (("A", (16, inputs)), ("B", (outputs, 16))):
            tensors[f"{stem}.lora_{end}.weight"] = torch.empty(shape, device="meta")

    for layer in range(32):
        if layer % 4 == 3:
            block = f"{layer}.gated_cross_attn_layer."
            add(block + "attn.to_q", 512, 4096)
            add(block + "attn.to_kv", 1024, 1024)
            add(block + "attn.to_out", 4096, 512)
            add(block + "ff.1", 16384, 4096)
            add(block + "ff.3", 4096, 16384)
        for letter in "qkvo":
            add(f"{layer}.decoder_layer.self_attn.{letter}_proj", 4096, 4096)
    return tensors


def test_the_release_is_known_by_its_numbers():
    layout = describe(Checkpoint("mmgpt-lora-v0-release.pt", released()))
    assert layout.released == "mmgpt-lora-v0-release.pt"
    assert "336 tensors, 23,461,888 parameters" in layout.facts[0]
    assert (layout.width, layout.media_width, layout.interval) == (4096, 1024, 4)
    assert layout.gated_layers == list(range(3, 32, 4))
    assert layout.media_mode == "next-v1"
    config, tensors = adapter(Checkpoint("x", released()), layout)
    assert (config["r"], config["lora_alpha"], len(tensors)) == (16, 16, 336)
    assert set(config["target_modules"]) == set(DEFAULT_TARGET_MODULES)
    names = ("lang_encoder.q_proj", "vision_encoder.q_proj", "perceiver.to_q", "lang_encoders.to_q")
    left_out = [bool(re.fullmatch(config["exclude_modules"], name)) for name in names]
    assert left_out == [False, True, True, True]


def test_an_unfrozen_tower_is_mapped_too(tiny_flamingo):
    _, saved = wrapped_as_multimodal_gpt_did(tiny_flamingo())
    attention = nn.MultiheadAttention(8, 1)
    tower = "vision_encoder.visual.transformer.resblocks.0.attn.in_proj_weight"
    checkpoint = Checkpoint("x", {**saved, tower: attention.in_proj_weight.data})
    _, tensors = adapter(checkpoint, describe(checkpoint))
    value = tensors["base_model.model.vision_encoder.encoder.layers.0.self_attn.v_proj.weight"]
    assert torch.equal(value, attention.in_proj_weight[16:])


def test_aliases_buffers_and_strangers_are_told_apart(tiny_flamingo):
    _, saved = wrapped_as_multimodal_gpt_did(tiny_flamingo())
    stem = "lang_encoder.base_model.model."
    saved[stem + "gated_cross_attn_layers.1.attn_gate"] = torch.ones(1)
    saved[stem + "model.layers.0.decoder_layer.self_attn.rotary_emb.inv_freq"] = torch.ones(1)
    saved["optimizer"] = torch.ones(1)
    layout = describe(Checkpoint("x", saved))
    assert [key.fate for key in layout.keys[-3:]] == ["dropped", "dropped", "unexpected"]
    assert all(key.reason for key in layout.keys[-3:])


def test_files_without_a_whole_lora_are_refused(tiny_flamingo):
    with pytest.raises(UserError, match="holds no LoRA.*lora_A"):
        describe(Checkpoint("x", {"perceiver.latents": torch.ones(2, 2)}))
    _, saved = wrapped_as_multimodal_gpt_did(tiny_flamingo())
    first = next(iter(saved))
    with pytest.raises(UserError, match="one rank on each"):
        describe(Checkpoint("x", {**saved, first: torch.ones(5, 5)}))
    del saved[first]
    with pytest.raises(UserError, match="damaged"):
        describe(Checkpoint("x", saved))

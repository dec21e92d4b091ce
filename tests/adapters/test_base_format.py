"""The frozen base in int8 under what is tuned: which layers, adapters both ways, merging."""

import sys
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from tuninglab.adapters.base_format import (
    count_parameters,
    left_in_float,
    quantization_config,
    tell_base_format,
)
from tuninglab.adapters.int8_lora import Int8LoraLinear, know_int8
from tuninglab.adapters.lora import tune
from tuninglab.adapters.saving import load_adapter, save_adapter
from tuninglab.config.tuning import TuningConfig
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.int8.linear import Int8Linear
from tuninglab.int8.quantiser import Int8Config, Int8Quantiser, int8_layers, mark_quantised
from tuninglab.models.build import flamingo_from_parts, load_flamingo
from tuninglab.savers import checkpoint_blocks

CPU = torch.device("cpu")


def int8(skip=TuningConfig(), fresh=False, **options):  # noqa: B008
    return quantization_config("int8", torch.float32, left_in_float(skip, fresh), **options)


def inputs(model):
    config = model.get_base_model().config if isinstance(model, PeftModel) else model.config
    ids = torch.randint(0, 250, (2, 8), generator=torch.Generator().manual_seed(3))
    ids[:, 1] = config.image_token_id
    pixels = torch.randn(2, 1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    return {"input_ids": ids, "pixel_values": pixels}


@torch.no_grad()
def logits(model):
    return model.eval()(**inputs(model)).logits


def gradients(model):
    model.train().zero_grad()
    model.get_base_model().vision_encoder.eval()
    model(**inputs(model), labels=inputs(model)["input_ids"]).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def moved(model):
    """Every trained parameter away from where it began."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def relative(one, other):
    return float((one - other).norm() / other.norm())


@pytest.fixture
def tuned(tiny_bases):
    """A tuned model on an int8 base."""
    base, _ = load_flamingo(tiny_bases["plain"], quantization=int8())
    return moved(tune(base, TuningConfig(), "some/base"))


def test_towers_and_what_trains_in_full_stay_float(tiny_bases):
    inside = {"attn.to_q", "attn.to_kv", "attn.to_out", "ff.1", "ff.3"}
    base, _ = load_flamingo(tiny_bases["plain"], quantization=int8())
    names = [name for name, _ in int8_layers(base)]
    assert all(name.startswith("lang_encoder.") for name in names)
    assert {n.partition("gated_cross_attn_layer.")[2] for n in names} == {*inside, ""}
    full = TuningConfig(train_cross_attention=True, modules_to_save=["mlp"])
    base, _ = load_flamingo(tiny_bases["plain"], quantization=int8(full))
    names = [name for name, _ in int8_layers(base)]
    assert names and not any("gated" in name or ".mlp." in name for name in names)
    trained = {n for n, p in tune(base, full).named_parameters() if p.requires_grad}
    assert any(".mlp." in name for name in trained) and any("to_kv" in name for name in trained)
    # A bridge that is new trains in full, whatever the settings say.
    assert left_in_float(TuningConfig(), True) == left_in_float(
        TuningConfig(train_cross_attention=True), False
    )


@pytest.mark.parametrize("tuning", [{"train_cross_attention": True}, {"modules_to_save": ["mlp"]}])
def test_what_was_saved_as_int8_cannot_train_in_full(tiny_bases, tuning):
    base, _ = load_flamingo(tiny_bases["plain"], quantization=int8())
    with pytest.raises(UserError, match="train in full, but .* saved quantised .int8."):
        tune(base, TuningConfig(**tuning))


def test_new_tokens_need_a_float_head(tiny_bases):
    tokens = TuningConfig(train_new_tokens=True)
    base, _ = load_flamingo(tiny_bases["plain"], quantization=int8(head=True))
    with pytest.raises(UserError, match="output layer is quantised"):
        tune(base, tokens)
    base, _ = load_flamingo(tiny_bases["plain"], quantization=int8(head=False))
    assert any("token_adapter" in n for n, _ in tune(base, tokens).named_parameters())


def test_lora_stands_on_int8_without_a_warning(tiny_bases):
    base, _ = load_flamingo(tiny_bases["plain"], quantization=int8())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tune(base, TuningConfig())
    wrapped = [m for m in model.modules() if isinstance(m, Int8LoraLinear)]
    assert len(wrapped) == 2 * 4 + 5
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert all(g.abs().sum() > 0 for n, g in gradients(moved(model)).items() if "lora" in n)


def test_gradients_are_near_those_on_the_dequantised_base(tuned):
    found = gradients(tuned)
    tuned.get_base_model().dequantize()
    expected = gradients(tuned)
    assert found.keys() == expected.keys()
    # The weights are the same: what differs is the rounding of activations and gradients, which
    # at a width of 32 and through all layers is a few percent.
    one, other = (torch.cat([g[name].flatten() for name in found]) for g in (found, expected))
    assert torch.cosine_similarity(one, other, dim=0) > 0.99


def test_a_recomputed_block_gives_the_same_gradients(tuned):
    expected = gradients(tuned)
    assert checkpoint_blocks(tuned, 1) == 3
    for name, gradient in gradients(tuned).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)


def test_the_adapter_is_an_ordinary_one(tuned, tiny_bases, tiny_flamingo, tmp_path):
    save_adapter(tuned, tmp_path / "adapter")
    plain = PeftModel.from_pretrained(tiny_flamingo(), str(tmp_path / "adapter"))
    assert relative(logits(plain), logits(tuned)) < 0.05
    assert relative(logits(plain), logits(tiny_flamingo())) > 0.3
    # On int8 again, it is the model that was tuned; and so is any adapter from a float base.
    base, _ = load_flamingo(tiny_bases["plain"], quantization=int8())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_adapter(base, tmp_path / "adapter")
    assert any(isinstance(m, Int8LoraLinear) for m in loaded.modules())
    assert torch.equal(logits(loaded), logits(tuned))


def test_merging_asks_for_a_float_base(tuned, tiny_flamingo, tmp_path):
    before = {n: layer.weight.clone() for n, layer in int8_layers(tuned)}
    for merge in (tuned.merge_adapter, tuned.merge_and_unload):
        with pytest.raises(UserError, match="cannot be merged into int8.*dequantize"):
            merge()
    assert all(torch.equal(layer.weight, before[n]) for n, layer in int8_layers(tuned))
    name = "lang_encoder.model.layers.1.gated_cross_attn_layer.ff.1"
    layer = tuned.get_base_model().get_submodule(name)
    delta = (
        layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    )
    expected = layer.base_layer.dequantised() + delta
    answered = logits(tuned)
    tuned.get_base_model().dequantize()
    in_floats = logits(tuned)
    assert relative(in_floats, answered) < 0.05
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(merged.get_submodule(name).weight, expected)
    torch.testing.assert_close(logits(merged), in_floats, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(type(merged).from_pretrained(tmp_path)), logits(merged))


def test_a_bias_of_lora_is_not_forgotten():
    torch.manual_seed(0)
    base = nn.Sequential(Int8Linear.of(nn.Linear(8, 4)))
    config = know_int8(LoraConfig(target_modules=["0"], lora_bias=True))
    model = get_peft_model(base, config)
    layer = model.base_model.model[0]
    nn.init.ones_(layer.lora_B["default"].bias)
    x = torch.randn(3, 8)
    torch.testing.assert_close(model(x), layer.base_layer(x) + layer.scaling["default"])


def test_parts_keep_the_language_model_in_int8(tiny_flamingo, take_apart, tiny_bases, tmp_path):
    from transformers import AutoTokenizer

    lang, clip = take_apart(tiny_flamingo(), tmp_path, rows=260)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bases["plain"])
    tokenizer.save_pretrained(lang)
    quantization = int8(fresh=True, head=False)
    model, processor = flamingo_from_parts(lang, clip, 1, torch.float32, quantization)
    names = [name for name, _ in int8_layers(model)]
    assert len(names) == 2 * 7 and not any("gated" in name for name in names)
    assert model.get_output_embeddings().weight.shape[0] == len(processor.tokenizer)
    trained = TuningConfig(train_cross_attention=True, train_perceiver=True)
    assert any(isinstance(m, Int8LoraLinear) for m in tune(model, trained).modules())
    # As it is saved with a run, and read again when that goes on.
    model, processor = flamingo_from_parts(lang, clip, 1, torch.float32, quantization)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    assert not hasattr(model.config.text_config, "quantization_config")
    loaded, _ = load_flamingo(tmp_path / "whole", torch.float32, quantization)
    assert [name for name, _ in int8_layers(loaded)] == names
    assert torch.equal(logits(loaded), logits(model))


def test_choices_say_what_is_held_how(tiny_bases, tiny_flamingo, capsys):
    choices = Choices()
    tell_base_format(tiny_flamingo(), choices, CPU)
    assert choices.made == []
    base, _ = load_flamingo(tiny_bases["plain"], torch.bfloat16, int8(head=False))
    tell_base_format(base, choices, CPU)
    assert choices.made[0]["value"] == "int8 in 19 linear layers, else bfloat16"
    assert "int8 in 19" in capsys.readouterr().err
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2))
    mark_quantised(gpt2, Int8Quantiser(Int8Config(), pre_quantized=False))
    with pytest.raises(UserError, match="GPT2LMHeadModel has no linear layer.*Conv1D"):
        tell_base_format(gpt2, choices, CPU)


def test_parameters_are_counted_as_before(tiny_bases, tiny_flamingo):
    base, _ = load_flamingo(tiny_bases["plain"], quantization=int8())
    models = [tune(model, TuningConfig()) for model in (base, tiny_flamingo())]
    assert count_parameters(models[0]) == count_parameters(models[1])
    assert count_parameters(models[1]) == sum(p.numel() for p in models[1].parameters())


def test_missing_bitsandbytes_is_told_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for name in ("bnb-int8", "bnb-nf4"):
        with pytest.raises(UserError, match=rf"--quantization {name}.*'tuninglab\[int8\]'"):
            quantization_config(name, torch.float32)
    assert quantization_config("none", torch.float32) is None

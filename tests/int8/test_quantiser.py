"""int8 weights made while a checkpoint is read, kept on disk, and made float again."""

import copy
import json
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    core_model_loading,
    modeling_utils,
)

from tuninglab.errors import UserError
from tuninglab.int8.linear import Int8Linear
from tuninglab.int8.quantiser import (
    Int8Config,
    Int8Quantiser,
    int8_layers,
    quantise_weight,
)
from tuninglab.int8.rows import quantise_rows
from tuninglab.models.build import load_flamingo
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.parts import load_lang_encoder
from tuninglab.models.quantised import quantised

TOWERS = ["vision_encoder", "perceiver"]


def names(model) -> set[str]:
    return {name for name, _ in int8_layers(model)}


def linears(model) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def same(one, other) -> bool:
    """Whether two models hold the same tensors, to the bit."""
    first, second = one.state_dict(), other.state_dict()
    kinds = [{k: (t.dtype, t.shape) for k, t in state.items()} for state in (first, second)]
    return kinds[0] == kinds[1] and all(torch.equal(first[k], second[k]) for k in first)


@torch.no_grad()
def logits(model):
    ids = torch.randint(0, 250, (2, 8), generator=torch.Generator().manual_seed(3))
    ids[:, 1] = model.config.image_token_id
    pixels = torch.randn(2, 1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    return model.eval()(input_ids=ids, pixel_values=pixels).logits


@pytest.mark.parametrize("base", ["plain", "tied"])
@pytest.mark.parametrize("head", [False, True])
def test_read_as_int8_equals_made_int8_in_memory(tiny_bases, tiny_flamingo, base, head):
    read, _ = load_flamingo(tiny_bases[base], quantization=Int8Config(TOWERS, head))
    made, plain = tiny_flamingo(base), tiny_flamingo(base)
    for name in Int8Config(TOWERS, head).layers(made):
        made.set_submodule(name, Int8Linear.of(made.get_submodule(name)))
    assert same(read, made)
    inside = {name for name in linears(plain) if name.startswith("lang_encoder.")}
    tied = base == "tied"
    assert names(read) == (inside if head and not tied else inside - {"lang_encoder.lm_head"})
    for name, layer in int8_layers(read):
        q, scale = quantise_rows(plain.get_submodule(name).weight)
        assert torch.equal(layer.weight, q) and torch.equal(layer.weight_scale, scale)
        assert not any(parameter.requires_grad for parameter in layer.parameters())
    error = (logits(read) - logits(plain)).norm() / logits(plain).norm()
    assert 0 < error < 0.05


def test_weights_are_quantised_in_blocks_of_rows():
    weight = torch.randn(2500, 7)
    q, scale = quantise_weight(weight)
    expected = quantise_rows(weight)
    assert torch.equal(q, expected[0]) and torch.equal(scale, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_int8_weights_come_back_to_the_bit(tiny_bases, tmp_path, dtype):
    model, processor = load_flamingo(tiny_bases["plain"], dtype, Int8Config(TOWERS, head=True))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "tuninglab-int8"
    # Asked for again, or not asked for: they are what they are.
    for quantization in (None, Int8Config(TOWERS)):
        loaded, _ = load_flamingo(tmp_path, dtype, quantization)
        assert same(loaded, model)
        assert torch.equal(logits(loaded), logits(model))
        scales = [layer.weight_scale for _, layer in int8_layers(loaded)]
        assert {scale.dtype for scale in scales} == {torch.float32}
        assert not any(scale.requires_grad for scale in scales)
    # Without our loader too, and whatever was imported before.
    assert same(FlamingoForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype), model)


@pytest.mark.parametrize("smoothed", [[], ["lang_encoder.model.layers.0.mlp.down_proj"]])
def test_a_configuration_of_before_is_read_if_it_says_nothing_more(tiny_bases, tmp_path, smoothed):
    model, processor = load_flamingo(tiny_bases["plain"], quantization=Int8Config(TOWERS))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    assert "smoothed" not in config["quantization_config"]
    config["quantization_config"]["smoothed"] = smoothed
    file.write_text(json.dumps(config))
    if not smoothed:
        assert same(load_flamingo(tmp_path)[0], model)
        return
    with pytest.raises(UserError, match="smoothed.*does not know.*Quantise the model anew"):
        load_flamingo(tmp_path)


def test_an_int8_model_that_was_read_is_copied_and_saved(tiny_bases, tmp_path):
    model, _ = load_flamingo(tiny_bases["plain"], quantization=Int8Config(TOWERS))
    copied = copy.deepcopy(model)
    expected = logits(model)
    del model
    assert torch.equal(logits(copied), expected)
    copied.save_pretrained(tmp_path)
    assert same(FlamingoForConditionalGeneration.from_pretrained(tmp_path), copied)


def test_what_was_made_float_again_is_saved_as_float(tiny_bases, tmp_path):
    model, _ = load_flamingo(tiny_bases["plain"], quantization=Int8Config(TOWERS))
    gone = "lang_encoder.model.layers.0.decoder_layer.mlp.up_proj"
    model.set_submodule(gone, model.get_submodule(gone).to_linear(torch.float32))
    model.save_pretrained(tmp_path)
    loaded = FlamingoForConditionalGeneration.from_pretrained(tmp_path)
    assert gone not in names(loaded)
    assert same(loaded, model)


def test_dequantised_is_a_float_model_again(tiny_bases, tmp_path):
    model, _ = load_flamingo(tiny_bases["plain"], torch.bfloat16, Int8Config(TOWERS))
    layers = dict(int8_layers(model))
    model.dequantize()
    assert not names(model)
    for name, layer in layers.items():
        weight = model.get_submodule(name).weight
        assert weight.dtype == torch.bfloat16
        torch.testing.assert_close(
            weight.float(), layer.weight * layer.weight_scale[:, None], rtol=0.005, atol=0
        )
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert same(FlamingoForConditionalGeneration.from_pretrained(tmp_path), model)


@pytest.fixture
def sharded(tmp_path):
    """A LLaMA of 4 layers in several files."""
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    return tmp_path


def test_no_two_float_weights_are_there_at_a_time(sharded, monkeypatch):
    """Of what is quantised, each is gone before the next is read, and files are not mapped."""
    alive, most, opened = [], [], []
    read, open_file = core_model_loading._materialize_copy, modeling_utils.safe_open

    def count(tensor, *args, **kwargs):
        floats = [reference() for reference in alive]
        # Tables and norms stay; only layers of blocks are matrices of these widths.
        most.append(sum(t is not None and t.ndim == 2 and len(t) != 400 for t in floats))
        value = read(tensor, *args, **kwargs)
        alive.append(weakref.ref(value))
        return value

    def watch(*args, **kwargs):
        opened.append(kwargs["backend"])
        return open_file(*args, **kwargs)

    monkeypatch.setattr(core_model_loading, "_materialize_copy", count)
    monkeypatch.setattr(modeling_utils, "safe_open", watch)
    options = quantised(Int8Config(), LlamaConfig(), str(sharded))
    model = load_lang_encoder(sharded, torch.bfloat16, **options)
    assert len(names(model)) == 4 * 7
    assert len(most) == len(model.state_dict()) - 4 * 7
    assert max(most) == 0
    assert set(opened) == {"pread"}
    # As it was, for models that are not quantised.
    assert modeling_utils.safe_open is watch
    opened.clear()
    load_lang_encoder(sharded, torch.bfloat16)
    assert "pread" not in opened


def test_weights_that_do_not_fit_are_told(sharded):
    options = quantised(Int8Config(), LlamaConfig(), str(sharded))
    file = sharded / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(UserError, match=r"mlp\.\w+_proj\.weight is \(.*160.*128"):
        load_lang_encoder(sharded, torch.float32, **options)
    file.write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(UserError, match="do not fit config.json: .* missing: .*layers.4"):
        load_lang_encoder(sharded, torch.float32, **options)


def test_weights_that_were_quantised_otherwise_are_told(sharded):
    model = AutoModelForCausalLM.from_pretrained(sharded, quantization_config=Int8Config())
    four_bits = SimpleNamespace(quant_method="bitsandbytes", load_in_4bit=True)
    saved = model.config.to_diff_dict()["quantization_config"]
    config = LlamaConfig(quantization_config=saved)
    assert quantised(Int8Config(), config, "here") == {}
    with pytest.raises(UserError, match="here was saved with weights quantised by tuninglab-int8"):
        quantised(four_bits, config, "here")
    eight = LlamaConfig(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(UserError, match="quantised by bitsandbytes. Leave --quantization"):
        quantised(four_bits, eight, "here")


def test_transformers_knows_it(tiny_bases):
    model, _ = load_flamingo(tiny_bases["plain"], quantization=Int8Config(TOWERS))
    assert isinstance(model.hf_quantizer, Int8Quantiser)
    assert model.is_quantized and model.hf_quantizer.is_serializable()
    assert Int8Config.from_dict(model.config.quantization_config.to_dict()).skip == TOWERS

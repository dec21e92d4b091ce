"""bitsandbytes under what is tuned: which layers, exact gradients, and its trap with 4 bits."""

import copy
import logging
import re

import pytest
import torch
from peft import PeftModel

from tuninglab.adapters.base_format import (
    count_parameters,
    left_in_float,
    quantization_config,
    tell_base_format,
)
from tuninglab.adapters.lora import tune
from tuninglab.adapters.saving import load_adapter, save_adapter
from tuninglab.config.tuning import TuningConfig
from tuninglab.console import Choices
from tuninglab.models.build import load_flamingo
from tuninglab.models.flamingo import FlamingoForConditionalGeneration

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes (extra int8) is not installed")
KINDS = ("bnb-int8", "bnb-nf4")


@pytest.fixture(scope="module")
def base(loaded_bases, tiny_bases, tmp_path_factory):
    """A tiny Flamingo whose every width is a multiple of 64, as 4 bits are packed on some CPUs."""
    config = copy.deepcopy(loaded_bases["plain"].config)
    for part in (config.text_config, config.vision_config):
        part.hidden_size, part.intermediate_size = 64, 128
    config.text_config.head_dim = 16
    config.cross_attn_dim_head = 32
    torch.manual_seed(0)
    model = FlamingoForConditionalGeneration(config)
    for block in model.gated_blocks:
        block.attn_gate.data.fill_(0.6)
        block.ff_gate.data.fill_(0.3)
    folder = tmp_path_factory.mktemp("wide")
    model.save_pretrained(folder)
    load_flamingo(tiny_bases["plain"])[1].save_pretrained(folder)
    return folder


def load(folder, kind, tuning=TuningConfig()):  # noqa: B008
    skip = left_in_float(tuning, fresh_bridge=False)
    return load_flamingo(folder, torch.float32, quantization_config(kind, torch.float32, skip))[0]


def inputs(model):
    ids = torch.randint(0, 250, (2, 8), generator=torch.Generator().manual_seed(3))
    ids[:, 1] = model.get_base_model().config.image_token_id
    pixels = torch.randn(2, 1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    return {"input_ids": ids, "pixel_values": pixels}


def moved(model):
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def gradients(model):
    model.train().zero_grad()
    model.get_base_model().vision_encoder.eval()
    model(**inputs(model), labels=inputs(model)["input_ids"]).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def answers(model):
    return model.eval()(**inputs(model)).logits


@pytest.mark.parametrize("kind", KINDS)
def test_towers_head_and_what_trains_in_full_stay_float(base, kind, capsys):
    model = load(base, kind, TuningConfig(modules_to_save=["mlp"]))
    layers = (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit)
    names = [name for name, module in model.named_modules() if isinstance(module, layers)]
    assert names and all(name.startswith("lang_encoder.model.layers.") for name in names)
    assert not any(".mlp." in name for name in names)
    choices = Choices()
    tell_base_format(model, choices, torch.device("cpu"))
    bits = kind.removeprefix("bnb-")
    assert choices.made[0]["value"] == f"{bits} in {len(names)} linear layers, else float32"
    assert "bitsandbytes" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_exact_whatever_was_evaluated_before(base, kind):
    """Those on the same weights made float; with 4 bits an evaluation must not change them."""
    model = moved(tune(load(base, kind), TuningConfig()))
    fresh = gradients(model)
    answers(model)
    with torch.inference_mode():
        ids = inputs(model)["input_ids"]
        model.generate(**inputs(model), attention_mask=torch.ones_like(ids), max_new_tokens=2)
    later = gradients(model)
    model.get_base_model().dequantize()
    expected = gradients(model)
    for name, gradient in fresh.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
        assert torch.equal(later[name], gradient)


@pytest.mark.skipif(
    not getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16"),
    reason="needs a CPU with AVX512-BF16, where bitsandbytes repacks its weights",
)
def test_the_trap_is_there_without_the_fix(base):
    """Once this fails, bitsandbytes has mended it and `tune` need not."""
    model = moved(tune(load(base, "bnb-nf4"), TuningConfig()))
    fresh = gradients(model)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            assert not module.support_avx512bf16_for_cpu
            module.support_avx512bf16_for_cpu = True
    answers(model)
    later = gradients(model)
    assert any(not torch.allclose(later[name], fresh[name], rtol=0.1) for name in fresh)


@pytest.mark.parametrize("kind", KINDS)
def test_its_adapter_is_an_ordinary_one(base, tmp_path, kind):
    model = moved(tune(load(base, kind), TuningConfig(), "some/base"))
    save_adapter(model, tmp_path)
    plain = PeftModel.from_pretrained(load(base, "none"), str(tmp_path))
    near = 0.05 if kind == "bnb-int8" else 0.3
    distance = (answers(plain) - answers(model)).norm() / answers(model).norm()
    assert 0 < distance < near
    again = load_adapter(load(base, kind), tmp_path)
    # What is only used may be repacked, for a kernel that computes in bf16.
    assert (answers(again) - answers(model)).norm() < 0.02 * answers(model).norm()


def test_parameters_are_counted_as_before(base):
    plain = count_parameters(tune(load(base, "none"), TuningConfig()))
    for kind in KINDS:
        assert count_parameters(tune(load(base, kind), TuningConfig())) == plain


def test_a_saved_8_bit_base_is_tuned_as_it_is(base, tmp_path):
    model, processor = load_flamingo(
        base, torch.float32, quantization_config("bnb-int8", torch.float32)
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load_flamingo(tmp_path, torch.float32)
    assert re.search("Linear8bitLt", repr(loaded))
    tuned = moved(tune(loaded, TuningConfig()))
    assert all(g.abs().sum() > 0 for n, g in gradients(tuned).items() if "lora" in n)


def test_it_is_quiet(base, caplog):
    with caplog.at_level(logging.WARNING):
        answers(tune(load(base, "bnb-int8"), TuningConfig()))
    assert not [record for record in caplog.records if "bitsandbytes" in record.name]

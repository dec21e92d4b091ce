"""Merged models against PEFT's own wrapper around the base, form by form."""

import warnings

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForImageTextToText

from tests.adapters.test_lora_forms import FORMS, inputs, logits, trained
from tuninglab.adapters.base_format import quantization_config
from tuninglab.adapters.lora import quietly
from tuninglab.adapters.saving import save_adapter
from tuninglab.console import Choices
from tuninglab.conversion.merging import merged, tuned_model
from tuninglab.models.build import load_flamingo
from tuninglab.run_folder.named_model import NamedModel

CPU = torch.device("cpu")
CASES = {
    **FORMS,
    "gates, perceiver and rows": {
        "train_gates": True,
        "train_perceiver": True,
        "train_new_tokens": True,
    },
    "a module in full, all biases": {"modules_to_save": ["mlp"], "bias": "all"},
    "a table": {"lora_target_modules": ["embed_tokens"]},
    "a table in full": {"modules_to_save": ["embed_tokens"], "freeze": ["gates"]},
}


def merge(base, adapter, dtype=None, read_as=None):
    tuned, processor = tuned_model(NamedModel(str(base), adapter), read_as, CPU, Choices())
    return merged(tuned, dtype), processor


@pytest.mark.parametrize("base", ["plain", "tied"])
@pytest.mark.parametrize("form", CASES)
def test_a_merged_model_is_the_base_under_peft(form, base, tiny_flamingo, tiny_bases, tmp_path):
    save_adapter(trained(tiny_flamingo(base), **CASES[form]), tmp_path / "adapter")
    alone, _ = load_flamingo(tiny_bases[base])
    under_peft = quietly(PeftModel.from_pretrained, alone, str(tmp_path / "adapter"))
    expected = logits(under_peft)
    untouched = logits(load_flamingo(tiny_bases[base])[0])
    assert (expected - untouched).abs().max() > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, _ = merge(tiny_bases[base], tmp_path / "adapter")
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    assert not hasattr(model, "peft_config")
    model.save_pretrained(tmp_path / "merged")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    assert (logits(again) - expected).abs().max() <= 1e-3
    answers = [
        m.generate(**inputs(m), max_new_tokens=8, do_sample=False) for m in (under_peft, again)
    ]
    assert torch.equal(*answers)


@pytest.mark.parametrize("form", ["gaussian", "dora", "rslora"])
def test_16_bits_are_rounded_once(form, tiny_flamingo, tiny_bases, tmp_path):
    save_adapter(trained(tiny_flamingo(), **CASES[form]), tmp_path / "adapter")
    load_flamingo(tiny_bases["plain"], "bf16")[0].save_pretrained(tmp_path / "base")
    load_flamingo(tiny_bases["plain"])[1].save_pretrained(tmp_path / "base")
    narrow, _ = merge(tmp_path / "base", tmp_path / "adapter")
    # The same base, in 32 bits, summed there: what is nearest to it in 16 is the best there is.
    wide, _ = merge(tmp_path / "base", tmp_path / "adapter", torch.float32, "fp32")
    best = wide.state_dict()
    assert all(t.dtype == torch.bfloat16 for t in narrow.state_dict().values())
    assert all(torch.equal(t, best[n].bfloat16()) for n, t in narrow.state_dict().items())


def test_an_int8_base_is_made_float_and_stays_so(tiny_flamingo, tiny_bases, tmp_path):
    save_adapter(trained(tiny_flamingo()), tmp_path / "adapter")
    config = quantization_config("int8", torch.float32)
    base, processor = load_flamingo(tiny_bases["plain"], torch.float32, config)
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    base.dequantize(torch.float32)
    under_peft = quietly(PeftModel.from_pretrained, base, str(tmp_path / "adapter"))
    model, _ = merge(tmp_path / "base", tmp_path / "adapter")
    model.save_pretrained(tmp_path / "merged")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    assert not hasattr(again.config, "quantization_config")
    assert {t.dtype for t in again.state_dict().values()} == {torch.float32}
    assert (logits(again) - logits(under_peft)).abs().max() <= 1e-3

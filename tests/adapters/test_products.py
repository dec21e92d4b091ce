"""A model whose float32 layers multiply through oneDNN, against PEFT's and torch's own."""

import copy

import pytest
import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn

from tests.kernels.test_products import needs_onednn
from tests.tiny import flamingo, flamingo_config
from tuninglab.adapters import products
from tuninglab.adapters.lora import tune
from tuninglab.adapters.products import FastLoraLinear, choose_products, use_onednn
from tuninglab.config.tuning import TuningConfig
from tuninglab.console import Choices
from tuninglab.kernels import compiled, few_rows
from tuninglab.kernels.products import FastLinear
from tuninglab.models import generation


@pytest.fixture
def batch(make_batch):
    made = make_batch([[0, 4], [1]])
    return made | {"labels": made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)}


def tuned(**tuning):
    torch.manual_seed(0)
    model = tune(flamingo(flamingo_config(), 0.5, 0.3, scale=6.0), TuningConfig(r=4, **tuning))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def step(model, batch):
    torch.manual_seed(1)
    loss = model.train()(**batch).loss
    trained = [p for p in model.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, trained)]


def calls_of(monkeypatch):
    calls = []
    apply = products.FrozenWithLora.apply
    monkeypatch.setattr(
        products.FrozenWithLora, "apply", lambda *args: calls.append(1) or apply(*args)
    )
    return calls


@needs_onednn
def test_losses_gradients_and_files_are_the_same(batch, monkeypatch):
    model, calls = tuned(), calls_of(monkeypatch)
    expected, printed, state = step(model, batch), repr(model), model.state_dict()
    adapter = get_peft_model_state_dict(model)
    count = use_onednn(model)
    layers = [m for m in model.modules() if isinstance(m, FastLinear | FastLoraLinear)]
    assert len(layers) == count and not any(m.weight.requires_grad for m in layers)
    for part in ("vision_encoder", "perceiver", "lang_encoder"):
        kinds = {type(m) for m in model.get_base_model().get_submodule(part).modules()}
        assert FastLinear in kinds and (FastLoraLinear in kinds) == (part == "lang_encoder")
    for value, wanted in zip(step(model, batch), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=2e-4, atol=2e-6)
    assert len(calls) == sum(isinstance(m, FastLoraLinear) for m in layers)
    assert repr(model) == printed and model.state_dict().keys() == state.keys()
    assert get_peft_model_state_dict(model).keys() == adapter.keys()
    again = copy.deepcopy(model)
    assert all(map(torch.equal, step(again, batch), step(model, batch)))


@needs_onednn
@pytest.mark.parametrize(
    "tuning", [{"lora_dropout": 0.5}, {"use_dora": True}, {"bias": "lora_only"}, {"bias": "all"}]
)
def test_what_is_not_plain_lora_stays_pefts(tuning, batch, monkeypatch):
    model, calls = tuned(**tuning), calls_of(monkeypatch)
    # A LLaMA has no biases: one that trains is put there.
    if tuning.get("bias"):
        for module in model.modules():
            if isinstance(module, LoraLinear):
                size = module.get_base_layer().out_features
                module.get_base_layer().bias = nn.Parameter(torch.ones(size))
    expected = step(model, batch)
    use_onednn(model)
    for value, wanted in zip(step(model, batch), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=2e-4, atol=2e-6)
    assert not calls


@needs_onednn
def test_an_adapter_that_is_off_or_merged_is_pefts(batch, monkeypatch):
    model, calls = tuned().eval(), calls_of(monkeypatch)
    use_onednn(model)
    with torch.no_grad():
        answers = model(**batch).logits
        made = len(calls)
        with model.disable_adapter():
            assert not torch.allclose(model(**batch).logits, answers, atol=1e-3)
        assert made and len(calls) == made
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, answers, rtol=1e-3, atol=1e-4)
    assert len(calls) == made


def test_the_choice_is_tried_said_and_kept(monkeypatch):
    large = nn.Sequential(*(nn.Linear(256, 256) for _ in range(3)), nn.Linear(8, 8))
    asked = []

    def faster(shapes):
        asked.append(list(shapes))
        return True, "tried"

    monkeypatch.setattr(products, "faster", faster)
    monkeypatch.setattr(products, "has_onednn", lambda: True)
    choices = Choices()
    assert choose_products("auto", large, torch.float32, choices) == "onednn"
    assert asked == [[(256, 256)]] and choices.made[0]["value"] == "oneDNN"
    # A resumed run goes on with what was decided, without trying.
    for decided in ("torch", "onednn"):
        for model in (large, large[3:]):
            assert choose_products(decided, model, torch.float32, choices) == decided
    for model, dtype in ((large, torch.bfloat16), (large[3:], torch.float32)):
        assert choose_products("auto", model, dtype, choices) == "torch"
    assert (
        choose_products("auto", copy.deepcopy(large).to("meta"), torch.float32, choices) == "torch"
    )
    assert len(asked) == 1
    monkeypatch.setattr(products, "has_onednn", lambda: False)
    assert choose_products("onednn", large, torch.float32, choices) == "torch"
    assert "this torch has no" in choices.made[-1]["reason"]


def test_processes_multiply_alike(monkeypatch):
    model, choices = nn.Linear(256, 256), Choices()
    monkeypatch.setattr(products, "has_onednn", lambda: True)
    monkeypatch.setattr(products, "faster", lambda shapes: (True, "tried: 0.5"))
    for others, decided, reason in (
        ([(True, "tried: 0.6")], "onednn", "tried: 0.5; so in all 2 processes, which must agree"),
        ([(True, ""), (False, "tried: 0.9")], "torch", "tried: 0.9; in one of 3 processes, which"),
    ):
        asked = ("auto", model, torch.float32, choices, lambda votes, more=others: votes + more)
        assert choose_products(*asked) == decided
        assert reason in choices.made[-1]["reason"]


@needs_onednn
def test_few_rows_are_multiplied_in_c_in_these_layers_too(batch, monkeypatch):
    if compiled.library() is None:
        pytest.skip("no C compiler here")
    model, calls, rows = tuned().eval(), calls_of(monkeypatch), []
    given = {name: value for name, value in batch.items() if name != "labels"}
    given |= {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    expected = model.generate(**given)
    use_onednn(model)
    product = few_rows._product
    # Layer by layer, as models decode of which C does not know every layer.
    monkeypatch.setattr(generation, "decoder_of", lambda lang_encoder: (None, "another"))
    monkeypatch.setattr(few_rows, "SMALLEST", 0)
    monkeypatch.setattr(
        few_rows, "_product", lambda *args: rows.append(len(args[1])) or product(*args)
    )
    assert torch.equal(model.generate(**given), expected)
    # Four layers of seven products in each of three steps, and the head in all four.
    assert len(rows) >= 3 * 4 * 7 + 4 and calls

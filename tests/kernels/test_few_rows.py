"""Few rows in C against float64, and generation with them against transformers without."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.tiny import t5
from tuninglab.adapters.int8_lora import know_int8
from tuninglab.int8 import linear as int8_linear
from tuninglab.int8.linear import Int8Linear
from tuninglab.kernels import compiled, few_rows
from tuninglab.kernels.few_rows import few_rows_in_c

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="no C compiler here")

MARKS = [[2], [3, 5]]
STEP = {torch.float32: 2e-6, torch.bfloat16: 5e-3}


@pytest.fixture(autouse=True)
def small_weights_too(monkeypatch):
    monkeypatch.setattr(few_rows, "SMALLEST", 0)


@pytest.fixture
def calls(monkeypatch):
    """The shapes of the weights that C multiplied."""
    seen, product = [], few_rows._product

    def recording(kernel, x, weight, beside):
        seen.append(tuple(weight.shape))
        return product(kernel, x, weight, beside)

    monkeypatch.setattr(few_rows, "_product", recording)
    return seen


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(0, 20),
    out=st.integers(0, 50),
    size=st.one_of(st.integers(0, 200), st.sampled_from([1023, 1024, 1377, 4100])),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bias=st.booleans(),
    whole=st.booleans(),
)
def test_the_kernels_multiply_as_float64_does(rows, out, size, dtype, bias, whole):
    x = numbers(rows, size, dtype=dtype)
    if whole:
        weight = (40 * numbers(out, size, seed=1)).round().clamp(-128, 127).to(torch.int8)
        scale = numbers(out, seed=2).abs()
        y = few_rows._FEW_ROWS_INT8(x, weight, scale)
        exact = (x.double() @ weight.double().t()) * scale.double()
    else:
        weight, beside = numbers(out, size, dtype=dtype, seed=1), numbers(out, dtype=dtype, seed=2)
        y = few_rows._FEW_ROWS(x, weight, beside if bias else None)
        exact = F.linear(x.double(), weight.double(), beside.double() if bias else None)
    assert y.dtype == dtype and y.shape == exact.shape
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    torch.testing.assert_close(y.double(), exact, rtol=STEP[dtype], atol=STEP[dtype] * largest)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(bad, whole):
    x = numbers(6, 70)
    x[4, 69] = bad
    layer = nn.Linear(70, 9)
    with torch.no_grad(), few_rows_in_c(layer):
        y = (Int8Linear.of(layer) if whole else layer)(x)
    assert not y[4].isfinite().any() and y[[0, 1, 2, 3, 5]].isfinite().all()


@pytest.mark.parametrize("whole", [False, True])
def test_inputs_that_lie_otherwise_and_have_more_axes(whole, calls):
    layer = nn.Linear(24, 7)
    other = Int8Linear.of(layer) if whole else layer
    wide = numbers(24, 2, 9).permute(1, 2, 0)
    with torch.inference_mode(), few_rows_in_c(layer):
        for x in (wide[:, -1:], wide[:, ::4], numbers(24), numbers(3, 48)[:, ::2]):
            expected = F.linear(x.double(), layer.weight.double(), layer.bias.double())
            # int8 steps of the weight are all that is lost.
            step = 0.02 if whole else 1e-6
            torch.testing.assert_close(other(x).double(), expected, rtol=step, atol=step)
        assert len(calls) == 4
        assert other(numbers(2, 0, 24)).shape == (2, 0, 7) and len(calls) == 4


def test_what_does_not_fit_goes_to_torch(calls, monkeypatch):
    layer = nn.Linear(24, 7)
    with few_rows_in_c(layer):
        layer(numbers(2, 24)).sum().backward()
        with torch.no_grad():
            layer(numbers(9, 24))
            copy.deepcopy(layer).double()(numbers(2, 24).double())
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(numbers(2, 24)).dtype == torch.bfloat16
            with pytest.raises(RuntimeError, match="shapes"):
                layer(numbers(2, 12))
            assert layer.to("meta")(numbers(2, 24).to("meta")).shape == (2, 7)
            monkeypatch.setattr(compiled, "library", lambda: None)
            nn.Linear(24, 7)(numbers(2, 24))
    assert not calls and layer.weight.grad is not None


def test_the_model_is_afterwards_what_it_was():
    model = get_peft_model(
        nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16)),
        LoraConfig(target_modules=["0"], init_lora_weights=False),
    )
    told, state = str(model), list(model.state_dict())
    with pytest.raises(KeyError), few_rows_in_c(model):
        inside = copy.deepcopy(model)
        with few_rows_in_c(model):
            assert str(model) == told and list(model.state_dict()) == state
        # The inner block left the outer one's alone.
        assert sum("forward" in vars(m) for m in model.modules()) == 4
        raise KeyError
    assert not any("forward" in vars(m) for m in model.modules())
    x = numbers(4, 32)
    torch.testing.assert_close(inside(x), model(x))


OPTIONS = {
    "greedy": {},
    "beams": {"num_beams": 3, "length_penalty": 0.0},
    "sampled": {"do_sample": True, "num_return_sequences": 2, "temperature": 3.0},
}


def both(model, calls, monkeypatch, batch, name):
    """Tokens with C and without, from the same seed."""
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1} | OPTIONS[name]
    found = []
    for here in (True, False):
        with monkeypatch.context() as patch:
            if not here:
                patch.setattr(compiled, "library", lambda: None)
            torch.manual_seed(3)
            found.append(model.generate(**batch, **options))
            assert bool(calls) == here
            calls.clear()
    return found


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "opt", "gpt_neox", "mpt", "gptj"])
def test_every_family_says_the_same(family, name, make_flamingo, make_batch, calls, monkeypatch):
    ours, theirs = both(make_flamingo(family), calls, monkeypatch, make_batch(MARKS), name)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("merged", [False, True])
def test_with_lora_apart_and_merged(merged, make_flamingo, make_batch, calls, monkeypatch):
    lora = LoraConfig(target_modules=["q_proj", "v_proj", "to_kv"], init_lora_weights=False)
    model = get_peft_model(make_flamingo(), lora)
    if merged:
        model = model.merge_and_unload()
    ours, theirs = both(model, calls, monkeypatch, make_batch(MARKS), "greedy")
    assert torch.equal(ours, theirs)


def test_a_text_to_text_model_says_the_same(calls, monkeypatch):
    batch = {"input_ids": torch.randint(3, 150, (2, 7))}
    for name in OPTIONS:
        ours, theirs = both(t5().eval(), calls, monkeypatch, batch, name)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bias", [False, True])
def test_int8_with_few_rows_is_nearer_to_the_float_layer(bias, monkeypatch, calls):
    float_layer, x = nn.Linear(256, 192, bias), numbers(4, 256)
    torch.nn.init.normal_(float_layer.weight, std=0.1)
    model = get_peft_model(
        nn.Sequential(Int8Linear.of(float_layer)),
        know_int8(LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)),
    )
    lora = model.base_model.model[0]
    a, b = lora.lora_A["default"].weight.double(), lora.lora_B["default"].weight.double()
    delta = lora.scaling["default"] * (x.double() @ a.t() @ b.t())
    offset = float_layer.bias.double() if bias else 0.0
    rounded = x.double() @ lora.get_base_layer().dequantised(torch.float64).t() + offset + delta
    exact = x.double() @ float_layer.weight.double().t() + offset + delta
    with torch.no_grad():
        y = model(x)
        monkeypatch.setattr(int8_linear, "fits", lambda x, weight: False)
        monkeypatch.setattr(int8_linear, "ways", lambda *_: ("int8", "int8"))
        before = model(x)
    assert calls == [(192, 256)]
    torch.testing.assert_close(y.double(), rounded, rtol=1e-5, atol=1e-5)
    assert (y - exact).norm() < 0.85 * (before - exact).norm()

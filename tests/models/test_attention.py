"""transformers' layers with the attention that is chosen for them, against those with its own."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import EOC, PAD, flamingo, flamingo_config, t5, text_config
from tuninglab.kernels import attention as chosen
from tuninglab.models import attention
from tuninglab.models.attention import NAME, choose_attention

# Grouped heads, sliding windows, a cap on scores, and positions as a bias (MPT's own attention).
SHAPES = ("llama", "llama3", "mistral", "gemma", "gemma2", "phi3", "opt", "mpt")


@pytest.fixture(autouse=True)
def bf16_here(monkeypatch):
    for place in (chosen, attention):
        monkeypatch.setattr(place, "bf16_cpu", lambda: True)


@pytest.fixture
def taken(monkeypatch):
    """How often plain products were taken."""
    calls = []

    def apply(*args):
        calls.append(1)
        return plain(*args)

    plain = chosen._PlainProducts.apply
    monkeypatch.setattr(chosen._PlainProducts, "apply", apply)
    return calls


@pytest.fixture
def in_float(monkeypatch):
    """Plain products in float32 too: rounding hides no mistake there."""

    def takes(*tensors):
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    for place in (chosen, attention):
        monkeypatch.setattr(place, "takes_products", takes)


def loss_and_gradient(model, ids, mask):
    rows = model.get_input_embeddings().weight.requires_grad_()
    labels = ids.masked_fill(mask == 0, -100)
    torch.manual_seed(0)  # of OPT's dropout
    loss = model.train()(input_ids=ids, attention_mask=mask, labels=labels).loss
    (gradient,) = torch.autograd.grad(loss, rows)
    model.eval()
    return loss.detach(), gradient


@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_language_models_train_and_generate_as_with_their_own(shape, side, taken, in_float):
    model = flamingo(flamingo_config(shape), 0.5, scale=6.0).requires_grad_(False)
    ids = torch.randint(3, EOC, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if side != "none":
        mask[1, :3] = 0
        ids, mask = (ids, mask) if side == "left" else (ids.flip(1), mask.flip(1))
    ids = ids.masked_fill(mask == 0, PAD)
    expected = loss_and_gradient(model, ids, mask)
    text = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert not taken
    choose_attention(model, torch.bfloat16)
    for found, wanted in zip(loss_and_gradient(model, ids, mask), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    switched = model.lang_encoder.config._attn_implementation == NAME
    assert switched == (shape not in ("mpt", "gemma2"))
    assert len(taken) == switched * model.config.text_config.num_hidden_layers
    again = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert torch.equal(again, text)


def test_a_tower_that_trains_takes_it_too(taken):
    model = flamingo(flamingo_config(), 0.5).bfloat16().requires_grad_(False)
    choose_attention(model, torch.bfloat16)
    pixels = torch.randn(1, 1, 3, 16, 16)
    model.encode_patches(pixels)
    assert not taken
    model.vision_encoder.requires_grad_(True)
    model.encode_patches(pixels).float().sum().backward()
    assert len(taken) == model.config.vision_config.num_hidden_layers
    assert all(p.grad.isfinite().all() for p in model.vision_encoder.encoder.parameters())


def test_a_mask_of_numbers_and_dropout_stay_with_sdpa(taken):
    model = AutoModelForCausalLM.from_config(text_config("llama", attention_dropout=0.5)).bfloat16()
    model.set_attn_implementation(NAME)
    ids = torch.tensor([[3, 4, 5]])
    model.train()(ids)
    added = torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16)
    model.eval()(ids, attention_mask=added)
    assert not taken
    model(ids)
    assert taken


def test_files_and_what_a_user_chose_stay_as_they_are(tmp_path):
    model = flamingo(flamingo_config(), 0.5).bfloat16()
    model.save_pretrained(tmp_path / "before")
    model.vision_encoder.set_attn_implementation("eager")
    choose_attention(model, torch.bfloat16)
    assert model.lang_encoder.config._attn_implementation == NAME
    assert model.vision_encoder.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path / "after")
    files = [path.name for path in (tmp_path / "before").iterdir()]
    assert "config.json" in files
    for name in files:
        before, after = (tmp_path / side / name for side in ("before", "after"))
        assert before.read_bytes() == after.read_bytes()


def test_other_formats_models_and_devices_are_left_alone(monkeypatch):
    model = flamingo(flamingo_config(), 0.5)
    assert choose_attention(model, torch.float32) is None
    assert choose_attention(copy.deepcopy(model).to("meta"), torch.bfloat16) is None
    assert choose_attention(t5(), torch.bfloat16) is None
    monkeypatch.setattr(attention, "bf16_cpu", lambda: False)
    assert choose_attention(model, torch.bfloat16) is None
    assert model.lang_encoder.config._attn_implementation == "sdpa"

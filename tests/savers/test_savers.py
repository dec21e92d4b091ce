"""Each memory saver against the module it stands for, in float32 and without C kernels too."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense, T5LayerNorm

from tests.tiny import t5
from tuninglab.int8.embedding import Int8Embedding
from tuninglab.int8.linear import Int8Linear
from tuninglab.int8.quantiser import Int8Config
from tuninglab.models.loss import chunked_loss, next_token_loss
from tuninglab.savers import add_savers, checkpoint_blocks
from tuninglab.savers.glu import ACTIVATIONS, SavingActivation, SavingGLU, activation_of
from tuninglab.savers.norm import SavingRMSNorm, is_rms_norm


def gradients(function, *inputs, grad):
    leaves = [t.clone().requires_grad_() for t in inputs]
    y = function(*leaves)
    y.backward(grad)
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def relative(value, expected):
    return float((value.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("kind", [LlamaRMSNorm, T5LayerNorm])
@pytest.mark.parametrize("width", [1, 31, 64])
def test_norm(kernels, kind, width):
    norm = kind(width, eps=1e-5).requires_grad_(False)
    norm.weight.uniform_(-2, 2)
    assert is_rms_norm(norm)
    x, grad = torch.randn(3, 5, width), torch.randn(3, 5, width)
    expected = gradients(norm, x, grad=grad)
    for value, wanted in zip(gradients(SavingRMSNorm(norm), x, grad=grad), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)
    y = SavingRMSNorm(norm.to(torch.bfloat16))(x.bfloat16())
    assert y.dtype == torch.bfloat16 and relative(y, expected[0]) < 0.01


@pytest.mark.parametrize("kind", [LlamaRMSNorm, T5LayerNorm])
def test_a_norm_in_16_bits_is_as_near_to_float64_as_the_one_it_stands_for(kernels, kind):
    torch.manual_seed(0)
    norm = kind(64, eps=1e-5).requires_grad_(False)
    norm.weight.uniform_(-2, 2)
    norm = norm.bfloat16()
    x, grad = (torch.randn(50, 64).bfloat16() for _ in range(2))

    def exact(x):
        root = (x.pow(2).mean(1, keepdim=True) + 1e-5).rsqrt()
        return x * root * norm.weight.double()

    expected = gradients(exact, x.double(), grad=grad.double())
    ours, theirs = gradients(SavingRMSNorm(norm), x, grad=grad), gradients(norm, x, grad=grad)
    for value, other, wanted in zip(ours, theirs, expected, strict=True):
        assert relative(value, wanted) <= relative(other, wanted)


def keeping_rows(norm):
    saving = SavingRMSNorm(norm)
    saving.keeps_rows = True
    return saving


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_that_keeps_rows_computes_the_stated_algorithm(kernels, dtype):
    torch.manual_seed(0)
    norm = LlamaRMSNorm(96, eps=1e-5).requires_grad_(False)
    norm.weight.uniform_(0.1, 3).mul_(torch.randn(96).sign())
    x, grad = torch.randn(7, 9, 96).to(dtype), torch.randn(7, 9, 96).to(dtype)
    y, dx = gradients(keeping_rows(norm), x, grad=grad)
    exact_y, exact_dx = gradients(SavingRMSNorm(norm), x, grad=grad)
    assert torch.equal(y, exact_y)
    # In float64, from the rows of y that int8 layers round in float32.
    largest = y.float().abs().amax(-1, keepdim=True)
    q, step = (y.float() * (127 / largest)).round().double(), (largest / 127).double()
    g, weight = grad.double(), norm.weight.double()
    inverse = (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()
    unit = q * step / weight
    wanted = (g * weight - unit * (g * weight * unit).mean(-1, keepdim=True)) * inverse
    assert relative(dx, wanted) < (1e-6 if dtype == torch.float32 else 3e-3)
    assert relative(dx, exact_dx) < 5e-3


def test_a_tiny_weight_costs_its_column_no_more_than_the_second_term():
    torch.manual_seed(0)
    norm = LlamaRMSNorm(64).requires_grad_(False)
    norm.weight[:4] = torch.tensor([1e-2, 1e-4, 1e-8, 1e-30])
    x, grad = torch.randn(40, 64), torch.randn(40, 64)
    dx = gradients(keeping_rows(norm), x, grad=grad)[1]
    exact = gradients(norm.double(), x.double(), grad=grad.double())[1]
    inverse = (x.double().pow(2).mean(1, keepdim=True) + norm.variance_epsilon).rsqrt()
    second = grad.double() * norm.weight * inverse - exact
    assert ((dx - exact).abs() <= 1.1 * second.abs() + 1e-3).all()
    assert relative(dx[:, 4:], exact[:, 4:]) < 5e-3


def test_a_norm_that_trains_gets_its_gradient():
    norm = LlamaRMSNorm(16)
    saving = SavingRMSNorm(copy.deepcopy(norm))
    x = torch.randn(2, 3, 16)
    for each in (norm, saving):
        each(x).pow(3).sum().backward()
    torch.testing.assert_close(saving.weight.grad, norm.weight.grad)


def test_other_norms_are_left_alone():
    trained, layer_norm = LlamaRMSNorm(8), nn.LayerNorm(8).requires_grad_(False)
    shifted = LlamaRMSNorm(8).requires_grad_(False)
    # Gemma multiplies by 1 + weight.
    shifted.forward = lambda x: (1 + shifted.weight) * F.rms_norm(x, (8,))
    assert not any(map(is_rms_norm, (trained, layer_norm, shifted)))


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations(kernels, number, gated, dtype):
    torch.manual_seed(0)
    e, u, grad = (torch.randn(40, 33, dtype=dtype) * 3 for _ in range(3))
    inputs = (e, u) if gated else (e,)

    def plain(e, u=None):
        y = ACTIVATIONS[number](e.float())
        return (y if u is None else y * u.float()).to(dtype)

    saving = GLU(number) if gated else SavingActivation(number)
    expected = gradients(plain, *inputs, grad=grad)
    y, *grads = gradients(saving, *inputs, grad=grad)
    exact = {torch.float32: 1e-6, torch.bfloat16: 5e-3}[dtype]
    assert relative(y, expected[0]) < exact
    # What is kept is rounded to 255 steps a row.
    assert all(relative(g, w) < 0.02 for g, w in zip(grads, expected[1:], strict=True))


class GLU(nn.Module):
    def __init__(self, number):
        super().__init__()
        names = ("gate_proj", "up_proj", "down_proj")
        mlp = nn.Module()
        for name in names:
            mlp.add_module(name, Through())
        self.saving = SavingGLU(mlp, names, number)
        self.saving.gate_proj.value, self.saving.up_proj.value = 0, 1

    def forward(self, e, u):
        return self.saving((e, u))


class Through(nn.Module):
    """Picks one of a pair, or passes; has a weight as layers do."""

    value = None

    def __init__(self):
        super().__init__()
        self.weight = torch.zeros(1, 1, dtype=torch.int8)

    def forward(self, x):
        return x if self.value is None else x[self.value]


def test_activations_are_recognised_by_what_they_compute():
    llama = LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=12))
    gated = T5DenseGatedActDense(T5Config(d_model=8, d_ff=12, feed_forward_proj="gated-gelu"))
    assert activation_of(llama.act_fn) == 0
    assert activation_of(gated.act) == 1
    assert activation_of(nn.GELU()) == 2
    assert activation_of(nn.ReLU()) is None


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("int8", [False, True])
def test_loss_in_chunks(kernels, scaled, int8):
    torch.manual_seed(0)
    head = nn.Linear(24, 301, bias=False).requires_grad_(False)
    hidden, targets = torch.randn(13, 24) * 2, torch.randint(0, 301, (13,))
    count = 29 if scaled else None
    chunked_head = Int8Linear.of(head) if int8 else head

    def plain(hidden):
        weight = chunked_head.dequantised() if int8 else head.weight
        return next_token_loss(hidden @ weight.t(), targets, count)

    def chunked(hidden):
        return chunked_loss(hidden, chunked_head, targets, 5, count)

    expected = gradients(plain, hidden, grad=torch.tensor(0.7))
    got = gradients(chunked, hidden, grad=torch.tensor(0.7))
    for value, wanted in zip(got, expected, strict=True):
        assert relative(value, wanted) < (0.02 if int8 else 1e-6)


def test_a_loss_that_is_not_finite_shows():
    head = Int8Linear.of(nn.Linear(24, 300, bias=False))
    hidden = torch.randn(6, 24)
    hidden[2, 3] = float("nan")
    assert chunked_loss(hidden, head, torch.arange(6), 4).isnan()


def test_no_chunk_holds_more_logits_than_it_should():
    sizes = []
    head = nn.Linear(8, 50, bias=False).requires_grad_(False)
    head.register_forward_hook(lambda *a: sizes.append(len(a[2])))
    chunked_loss(torch.randn(11, 8, requires_grad=True), head, torch.arange(11), 4).backward()
    assert sizes == [4, 4, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding(kernels, dtype):
    table = nn.Embedding(50, 24, dtype=dtype)
    small = Int8Embedding(table)
    ids = torch.randint(0, 50, (3, 7))
    rows = small(ids)
    assert rows.shape == (3, 7, 24) and rows.dtype == dtype
    assert relative(rows, table(ids)) < 0.01
    assert copy.deepcopy(small).to(torch.bfloat16)(ids).dtype == torch.bfloat16
    assert small.to(torch.float32).weight_scale.dtype == torch.float32


def batch(source_tokens=11):
    generator = torch.Generator().manual_seed(3)
    source = torch.randint(2, 160, (3, source_tokens), generator=generator)
    target = torch.randint(2, 160, (3, 6), generator=generator)
    mask = torch.ones_like(source)
    mask[1, 8:] = 0
    target[2, 4:] = -100
    return {"input_ids": source, "attention_mask": mask, "labels": target}


def loss_and_gradient(model):
    model.train()
    embeddings = {}

    def keep(module, args, output):
        # The encoder comes first; a decoder that shares its table calls again.
        if not embeddings:
            embeddings["rows"] = output.requires_grad_()
            output.retain_grad()

    hook = model.encoder.embed_tokens.register_forward_hook(keep)
    loss = model(**batch(), labels_only_logits=True).loss
    loss.backward()
    hook.remove()
    return loss.detach(), embeddings["rows"].grad


def int8_t5():
    model = t5(tie_word_embeddings=False)
    for name in Int8Config().layers(model):
        model.set_submodule(name, Int8Linear.of(model.get_submodule(name)))
    model.set_attn_implementation("eager")
    return model


def test_norms_that_int8_layers_read_keep_their_rows():
    model = int8_t5()
    expected = loss_and_gradient(copy.deepcopy(model))
    # A weight of 0 leaves nothing that an input could be made from.
    zero = copy.deepcopy(model)
    zero.encoder.block[1].layer[0].layer_norm.weight[3] = 0
    said = add_savers(model, ["norm", "norm_rows"])
    # All but the decoder's last, which the head reads; it is float here.
    assert said["norm_rows"].startswith("16 of 17 ")
    assert not model.decoder.final_layer_norm.keeps_rows
    loss, gradient = loss_and_gradient(model)
    assert relative(loss, expected[0]) < 1e-5 and relative(gradient, expected[1]) < 0.03
    checkpoint_blocks(model, 1)
    assert torch.equal(loss_and_gradient(model)[1], gradient)

    assert add_savers(zero, ["norm", "norm_rows"])["norm_rows"].startswith("15 of 17 ")
    assert loss_and_gradient(zero)[1].isfinite().all()
    floats = t5()
    assert add_savers(floats, ["norm", "norm_rows"])["norm_rows"].startswith("0 of 17 ")


def test_what_a_norm_keeps_is_what_its_readers_keep():
    """With LoRA on a layer that reads it, the norm keeps a number a row of its own, no more."""
    norm, layer = LlamaRMSNorm(64).requires_grad_(False), Int8Linear.of(nn.Linear(64, 32))
    x, lora = torch.randn(50, 64, requires_grad=True), (torch.randn(4, 64), torch.randn(32, 4))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer.multiply(keeping_rows(norm)(x), *lora)
    known = {t.data_ptr() for t in (layer.weight, layer.weight_scale, norm.weight, *lora)}
    sizes = [tensor.nbytes for place, tensor in kept.items() if place not in known]
    # q, its scales, LoRA's h, and the norm's number a row.
    assert y.shape == (50, 32) and sorted(sizes) == [200, 200, 800, 3200]


@pytest.mark.parametrize("piece", ["norm", "glu", "attention", "loss", "embedding"])
def test_t5_with_each_piece(kernels, piece):
    model = t5(tie_word_embeddings=False)
    model.set_attn_implementation("eager")
    expected = loss_and_gradient(copy.deepcopy(model))
    said = add_savers(model, [piece])
    assert said.keys() == {piece}
    loss, gradient = loss_and_gradient(model)
    exact = piece in ("norm", "attention", "loss")
    assert relative(loss, expected[0]) < (1e-5 if exact else 5e-3)
    assert relative(gradient, expected[1]) < (1e-4 if exact else 0.05)


def test_t5_keeps_less_with_every_piece():
    names = ("norm", "glu", "attention", "loss")
    # In 16 bits, where the plain norm keeps float32 copies.
    models = [t5(tie_word_embeddings=False, vocab_size=2000).bfloat16() for _ in range(5)]
    kept = [_kept_bytes(model, names[:n]) for n, model in enumerate(models)]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 5
    assert kept[-1] < 0.5 * kept[0]


class Kept:
    def __init__(self, tensor):
        self.tensor = tensor


def _kept_bytes(model, names):
    """Bytes that the graph holds after the forward pass, besides parameters."""
    model.set_attn_implementation("eager")
    add_savers(model, names)
    kept = weakref.WeakSet()

    def keep(tensor):
        held = Kept(tensor)
        kept.add(held)
        return held

    model.encoder.embed_tokens.register_forward_hook(lambda *a: a[2].requires_grad_())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held.tensor):
        loss = model.train()(**batch(64), labels_only_logits=True).loss
    assert loss.isfinite()
    storages = {held.tensor.untyped_storage() for held in kept}
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for place, size in sizes.items() if place not in known)


def test_a_trained_position_bias_gets_its_gradient():
    model = t5()
    model.set_attn_implementation("eager")
    saving = copy.deepcopy(model)
    add_savers(saving, ["attention"])
    biases = []
    for each in (model, saving):
        bias = each.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        bias.requires_grad_()
        each.train()(**batch()).loss.backward()
        biases.append(bias.grad)
    torch.testing.assert_close(biases[1], biases[0], rtol=1e-4, atol=1e-6)


def test_generation_is_the_same():
    model = t5()
    model.set_attn_implementation("eager")
    expected = model.generate(batch()["input_ids"], max_new_tokens=8, use_cache=True)
    add_savers(model, ["norm", "glu", "attention", "loss"])
    again = model.generate(batch()["input_ids"], max_new_tokens=8, use_cache=True)
    assert torch.equal(again, expected)


def test_a_tied_head_becomes_int8_with_its_table():
    model = t5()
    expected = model(**batch()).logits
    add_savers(model, ["embedding"])
    assert isinstance(model.lm_head, Int8Linear)
    assert model.lm_head.weight is model.shared.weight
    assert model.encoder.embed_tokens is model.decoder.embed_tokens is model.shared
    assert relative(model(**batch()).logits, expected) < 0.05


def test_llama_blocks_take_the_same_savers():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=90, num_attention_heads=4, **sizes))
    model.requires_grad_(False)
    ids = torch.randint(0, 90, (2, 9))
    expected = model(ids).logits
    said = add_savers(model, ["norm", "glu", "attention", "embedding"])
    assert said["norm"] == "5 RMS norms" and said["glu"] == "2 feed-forwards"
    assert relative(model(ids).logits, expected) < 0.03


@pytest.mark.parametrize("every, chosen", [(1, 6), (2, 4), (3, 2), (9, 2)])
def test_every_nth_block_is_checkpointed(every, chosen):
    model = t5().requires_grad_(True)
    expected = copy.deepcopy(model).train()
    expected(**batch()).loss.backward()
    assert checkpoint_blocks(model, every) == chosen
    runs = []
    block = model.decoder.block[0]
    block.layer[0].register_forward_hook(lambda *_: runs.append(1))
    model.train()(**batch()).loss.backward()
    assert len(runs) == 2
    for value, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value.grad, wanted.grad)

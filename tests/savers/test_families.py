"""All savers in each family of language models: the same numbers, or left alone and said so."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

from tests.tiny import t5, text_config
from tuninglab.int8.embedding import Int8Embedding
from tuninglab.int8.linear import Int8Linear
from tuninglab.int8.quantiser import Int8Config
from tuninglab.kernels import compiled
from tuninglab.savers import add_savers, attention
from tuninglab.savers.attention import saving_attention
from tuninglab.savers.glu import saving_glu_of
from tuninglab.savers.norm import is_rms_norm

FAMILIES = ["llama", "gemma3_text", "opt", "gpt_neox", "mpt", "qwen2", "falcon_h1"]
FAMILIES += ["llama3", "mistral", "qwen3", "gemma", "gemma2", "phi", "phi3", "phi4-mini"]
AS_IT_IS = {"gemma3_text": ["embedding"], "falcon_h1": ["glu"]}


@pytest.fixture
def make_model(make_flamingo, make_batch):
    """A function (family) -> a model and a batch with labels."""

    def make(family):
        if family == "t5":
            ids = torch.randint(2, 160, (3, 11), generator=torch.Generator().manual_seed(3))
            mask = torch.ones_like(ids)
            mask[1, 8:] = 0
            model = t5(tie_word_embeddings=False)
            model.set_attn_implementation("eager")
            return model, {"input_ids": ids, "attention_mask": mask, "labels": ids[:, :6]}
        batch = make_batch([[1, 5], [2, 6]])
        return make_flamingo(family).requires_grad_(False), batch | {"labels": batch["input_ids"]}

    return make


def outcome(model, batch, mixed, **options):
    """Loss, logits if there are any, and the gradient of the embedded rows."""
    rows = []

    def keep(module, args, output):
        # T5's encoder comes first; its decoder, which shares the table, calls again.
        if not rows:
            rows.append(output.detach().requires_grad_())
            return rows[0]

    table = getattr(model, "encoder", model).get_input_embeddings()
    hook = table.register_forward_hook(keep)
    with torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext():
        out = model.eval()(**batch, **options)
    out.loss.backward()
    hook.remove()
    return out.loss.detach(), out.logits, rows[0].grad


def relative(value, expected):
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("mixed", [False, True], ids=["fp32", "bf16 autocast"])
@pytest.mark.parametrize("family", [*FAMILIES, "t5"])
def test_all_savers_compute_the_same(make_model, family, mixed):
    model, batch = make_model(family)
    plain = outcome(copy.deepcopy(model), batch, mixed=False)
    far = [1e-5, 1e-5, 1e-4]
    if mixed:
        # No farther from float32 than 16 bits are without savers.
        without = outcome(copy.deepcopy(model), batch, mixed=True)
        far = [1.5 * relative(a, b) + 1e-3 for a, b in zip(without, plain, strict=True)]

    said = add_savers(model, ["norm", "attention", "loss"])
    loss, logits, grad = outcome(model, batch, mixed)
    assert relative(logits, plain[1]) < far[1] and relative(grad, plain[2]) < far[2]
    loss, _, grad = outcome(model, batch, mixed, labels_only_logits=True)
    assert relative(loss, plain[0]) < far[0] and relative(grad, plain[2]) < far[2]

    said |= add_savers(model, ["glu"])
    _, logits, grad = outcome(model, batch, mixed)
    # The backward pass of `glu` reads int8 rows.
    assert relative(logits, plain[1]) < far[1] and relative(grad, plain[2]) < far[2] + 0.03

    said |= add_savers(model, ["embedding"])
    _, logits, _ = outcome(model, batch, mixed)
    rounding = 0 if "embedding" in AS_IT_IS.get(family, []) else 0.05
    assert relative(logits, plain[1]) < far[1] + rounding
    for saver in AS_IT_IS.get(family, []):
        assert "left as" in said[saver], said


def test_what_is_left_as_it_is_is_said(make_flamingo):
    model = make_flamingo("gemma3_text").requires_grad_(False)
    said = add_savers(model, ["embedding", "glu"])
    assert "left as it is: Gemma3TextScaledWordEmbedding" in said["embedding"]
    assert said["glu"].startswith("6 feed-forwards")
    said = add_savers(make_flamingo("gemma2").requires_grad_(False), ["loss"])
    assert said["loss"].startswith("all at once")
    said = add_savers(make_flamingo("falcon_h1").requires_grad_(False), ["glu"])
    assert said["glu"] == "2 feed-forwards; left as they are: FalconH1MLP"


@pytest.mark.parametrize("family, count", [("llama", "8 of 9"), ("qwen3", "8 of 17")])
def test_only_norms_that_int8_layers_read_keep_rows(make_flamingo, family, count):
    """Neither the last one, whose reader is the head, nor Qwen3's of queries and keys."""
    model = make_flamingo(family).requires_grad_(False)
    for name in Int8Config(["vision_encoder", "perceiver"]).layers(model):
        model.set_submodule(name, Int8Linear.of(model.get_submodule(name)))
    assert add_savers(model, ["norm", "norm_rows"])["norm_rows"].startswith(f"{count} RMS norms")


def mlp(change=lambda gate, up, act: act(gate) * up):
    """LLaMA's feed-forward with another formula between its layers."""
    module = LlamaMLP(text_config("llama"))

    def forward(self, x):
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(change(gate, up, self.act_fn))

    module.__class__ = type("Changed", (LlamaMLP,), {"forward": forward})
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_feed_forward_is_tried_whole(kernels, dtype):
    changes = {
        "deepseek_v4": lambda g, u, act: act(g.clamp(max=10)) * u.clamp(-10, 10),
        "step3p7": lambda g, u, act: act(g).clamp(max=16) * u.clamp(-16, 16),
        "half": lambda g, u, act: act(g * 0.5) * u,
        "shifted": lambda g, u, act: act(g) * (u + 1),
        "swapped": lambda g, u, act: g * act(u),
        "dropped": lambda g, u, act: nn.functional.dropout(act(g) * u, 0.5, training=True),
        "broken": lambda g, u, act: act(g) * u.missing,
    }
    for name, change in changes.items():
        assert saving_glu_of(mlp(change).to(dtype)) is None, name
    assert saving_glu_of(mlp().to(dtype)) is not None
    plain = FalconH1MLP(text_config("falcon_h1"))
    assert saving_glu_of(plain.to(dtype)) is None
    plain.gate_multiplier = plain.down_multiplier = 1.0
    assert saving_glu_of(plain) is not None


def test_a_trial_leaves_the_feed_forward_as_it_was():
    module = mlp().bfloat16().eval()
    before = {name: id(child) for name, child in module.named_modules()}
    saving_glu_of(module)
    assert {name: id(child) for name, child in module.named_modules()} == before
    assert not module.training


def test_a_norm_that_takes_a_gate_is_left_alone():
    norm = MambaRMSNormGated(16, group_size=16).requires_grad_(False)
    assert not is_rms_norm(norm)


def test_a_tied_head_of_another_kind_leaves_the_table_alone(make_flamingo):
    model = make_flamingo("qwen2").requires_grad_(False)
    head = nn.Linear(32, 64, bias=True).requires_grad_(False)
    head.weight = model.get_input_embeddings().weight
    model.set_output_embeddings(head)
    assert "left as it is" in add_savers(model, ["embedding"])["embedding"]
    assert model.get_output_embeddings() is head


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("linears", ["float", "int8"])
def test_a_model_keeps_its_format_with_an_int8_table(make_flamingo, make_batch, family, linears):
    model = make_flamingo(family).bfloat16().requires_grad_(False)
    if linears == "int8":
        for name in Int8Config(["vision_encoder", "perceiver"]).layers(model):
            model.set_submodule(name, Int8Linear.of(model.get_submodule(name)))
    add_savers(model, ["embedding"])
    assert isinstance(model.get_input_embeddings(), Int8Embedding)
    assert model.lang_encoder.dtype == torch.bfloat16
    batch = make_batch([[1, 5], [2, 6]])
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    out = model.generate(**batch, max_new_tokens=3, min_new_tokens=3)
    assert out.shape == (2, 13)
    table = model.get_input_embeddings()
    assert table.weight_scale.dtype == torch.float32
    assert table.float()(torch.zeros(1, dtype=torch.long)).dtype == torch.float32


def attention_inputs(dtype=torch.float32):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    bias, mask = torch.randn(1, 3, 5, 5), torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    mask[1, :, :, 0] = False
    mask[1, :, 0, 0] = True
    return [t.to(dtype) for t in (q, k, v)], bias, mask


def attended(q, k, v, bias, mask, grad):
    """In float64, by the formula."""
    leaves = [t.detach().double().requires_grad_() for t in (q, k, v)]
    scores = leaves[0] @ leaves[1].transpose(2, 3) * q.shape[-1] ** -0.5
    scores = (scores + bias.double()).masked_fill(~mask, float("-inf"))
    out = (scores.softmax(-1) @ leaves[2]).transpose(1, 2)
    out.backward(grad.double())
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixed", [None, torch.bfloat16])
def test_attention_of_any_query_under_autocast(kernels, given, mixed):
    inputs, bias, mask = attention_inputs(given)
    leaves = [t.requires_grad_() for t in inputs]
    with torch.autocast("cpu", mixed) if mixed else contextlib.nullcontext():
        out, _ = saving_attention(nn.Module(), *leaves, mask, position_bias=bias)
    assert out.dtype == (mixed or given)
    grad = torch.randn(2, 5, 3, 8)
    out.backward(grad.to(out.dtype))
    expected = attended(*inputs, bias, mask, grad)
    for value, wanted in zip([out, *(leaf.grad for leaf in leaves)], expected, strict=True):
        assert relative(value, wanted) < (1e-5 if out.dtype == torch.float32 else 0.02)
    assert all(leaf.grad.dtype == given for leaf in leaves)


class Copies(TorchDispatchMode):
    """Counts tensors that are laid otherwise."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.copy_.default, torch.ops.aten.clone.default)
        return func(*args, **(kwargs or {}))


def test_rows_of_a_batch_are_not_laid_anew_for_each_product(monkeypatch):
    if compiled.library() is None:
        pytest.skip(compiled.kernels_here()[1])
    monkeypatch.setattr(attention, "SCORES_AT_A_TIME", 1)

    def copies(batch):
        # As layers give them: (B, T, heads, D), seen as (B, heads, T, D).
        leaves = [torch.randn(batch, 5, 3, 8).transpose(1, 2).requires_grad_() for _ in range(3)]
        with Copies() as seen:
            bias = torch.zeros(1, 3, 5, 5)
            out, _ = saving_attention(nn.Module(), *leaves, None, position_bias=bias)
            out.sum().backward()
        return seen.count

    # One a row: the sums of its probabilities, and its result, go where they belong.
    assert copies(6) - copies(2) == 2 * 4

"""The forms of LoRA beside the plain one, against PEFT's own and the untouched base."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from tests.tiny import t5
from tuninglab.adapters.base_format import quantization_config
from tuninglab.adapters.lora import check_patterns, quietly, tune
from tuninglab.adapters.saving import load_adapter, save_adapter
from tuninglab.config.tuning import LoraTuning, TextTuningConfig, TuningConfig
from tuninglab.errors import UserError
from tuninglab.models.build import load_flamingo


def inputs(model):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 250, (2, 8), generator=generator)
    config = model.get_base_model().config if isinstance(model, PeftModel) else model.config
    ids[:, 1], ids[0, 5] = config.image_token_id, config.eoc_token_id
    pixels = torch.randn(2, 1, 1, 3, 16, 16, generator=generator)
    return {"input_ids": ids, "pixel_values": pixels}


@torch.no_grad()
def logits(model):
    return model.eval()(**inputs(model)).logits


def trained(model, steps=3, **settings):
    """A tuned model after real steps of training."""
    torch.manual_seed(1)
    model = tune(model, TuningConfig(**settings), "some/base").train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    for _ in range(steps):
        model(**inputs(model), labels=inputs(model)["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def lora_layers(model) -> set[str]:
    names = {n.partition(".lora_A")[0] for n, _ in model.named_parameters() if ".lora_A." in n}
    return {name.removeprefix("base_model.model.") for name in names}


@pytest.mark.parametrize("base", ["plain", "tied"])
@pytest.mark.parametrize("word", ["all-linear", "all"])
def test_all_linear_is_what_peft_means_by_it(tiny_flamingo, base, word):
    ours = lora_layers(tune(tiny_flamingo(base), TuningConfig(lora_target_modules=[word])))
    alone = get_peft_model(
        tiny_flamingo(base).lang_encoder, LoraConfig(target_modules="all-linear")
    )
    assert ours == {f"lang_encoder.{name}" for name in lora_layers(alone)}
    assert len(ours) == 2 * 7 + 5 and not any("lm_head" in name for name in ours)


def test_all_linear_of_a_t5_and_of_a_conv1d_model():
    ours = lora_layers(tune(t5(), TextTuningConfig(lora_target_modules=["all-linear"]), scope=""))
    assert ours == lora_layers(get_peft_model(t5(), LoraConfig(target_modules="all-linear")))
    gpt2 = GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2)
    tuning = LoraTuning(lora_target_modules=["all-linear"])
    ours = lora_layers(tune(GPT2LMHeadModel(gpt2), tuning, scope=""))
    plain = LoraConfig(target_modules="all-linear", fan_in_fan_out=True)
    assert ours == lora_layers(get_peft_model(GPT2LMHeadModel(gpt2), plain)) and len(ours) == 4


def test_all_linear_takes_quantised_layers_too(tiny_flamingo, tiny_bases):
    tuning = TuningConfig(lora_target_modules=["all-linear"])
    expected = lora_layers(tune(tiny_flamingo(), tuning))
    for kind in ("int8", "bnb-int8", "bnb-nf4"):
        if kind != "int8":
            pytest.importorskip("bitsandbytes")
        quantization = quantization_config(kind, torch.float32)
        base, _ = load_flamingo(tiny_bases["plain"], torch.float32, quantization)
        assert lora_layers(tune(base, tuning)) == expected
    # What trains in full gets none.
    tuning.train_cross_attention = True
    inside = {name for name in expected if "gated" not in name}
    assert lora_layers(tune(tiny_flamingo(), tuning)) == inside


def test_ranks_and_alphas_by_pattern_are_those_of_peft(tiny_flamingo):
    ranks, alphas = {"q_proj": 2, r".*layers\.1\..*ff.1": 5}, {"to_q": 32}
    tuning = TuningConfig(rank_pattern=ranks, alpha_pattern=alphas, use_rslora=True)
    ours = tune(tiny_flamingo(), tuning)
    reference = LoraConfig(
        r=16,
        lora_alpha=16,
        target_modules=tuning.lora_target_modules,
        exclude_modules=r"(vision_encoder|perceiver)\..*",
        rank_pattern=ranks,
        alpha_pattern=alphas,
        use_rslora=True,
    )

    def numbers(model):
        named = model.get_base_model().named_modules()
        return {n: (m.r["default"], m.scaling["default"]) for n, m in named if hasattr(m, "lora_A")}

    found = numbers(ours)
    assert found == numbers(get_peft_model(tiny_flamingo(), reference))
    by_end = {name.rpartition(".")[2]: value for name, value in found.items()}
    assert by_end["q_proj"] == (2, 16 / 2**0.5) and by_end["to_q"] == (16, 32 / 4)
    assert found["lang_encoder.model.layers.1.gated_cross_attn_layer.ff.1"][0] == 5


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    ("pattern", "said"),
    [("q_prj", "'q_prj' hits no layer.*: q_proj"), ("lm_head", "'lm_head' hits no layer")],
)
def test_a_pattern_of_ranks_without_effect_is_an_error(tiny_flamingo, name, pattern, said):
    with pytest.raises(UserError, match=f"{name}: {said}"):
        check_patterns(tiny_flamingo(), TuningConfig(**{name: {"v_proj": 2, pattern: 4}}))
    shadowed = TuningConfig(**{name: {".*_proj": 2, "q_proj": 4}})
    with pytest.raises(UserError, match="'q_proj' hits only layers that a pattern before it"):
        check_patterns(tiny_flamingo(), shadowed)


FORMS = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 3}},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa": {"init_lora_weights": "pissa", "r": 4},
    "pissa by iteration": {"init_lora_weights": "pissa_niter_4", "r": 4},
    "olora": {"init_lora_weights": "olora", "r": 4},
    "pissa, rslora, patterns": {
        "init_lora_weights": "pissa",
        "use_rslora": True,
        "rank_pattern": {"q_proj": 3, "ff.1": 8},
        "alpha_pattern": {"to_q": 5, "q_proj": 7},
    },
    "pissa and dora": {"init_lora_weights": "pissa", "use_dora": True},
    "olora on all": {"init_lora_weights": "olora", "lora_target_modules": ["all-linear"], "r": 2},
    "olora and a table": {"init_lora_weights": "olora", "lora_target_modules": ["embed_tokens"]},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_lora_changes_nothing_learns_and_loads_on_the_untouched_base(
    tiny_flamingo, tmp_path, form
):
    base = logits(tiny_flamingo())
    near = {"atol": 2e-5, "rtol": 2e-5}
    start = tune(tiny_flamingo(), TuningConfig(**FORMS[form]))
    torch.testing.assert_close(logits(start), base, **near)
    save_adapter(start, tmp_path / "start")
    loaded = quietly(PeftModel.from_pretrained, tiny_flamingo(), str(tmp_path / "start"))
    torch.testing.assert_close(logits(loaded), base, **near)

    model = trained(tiny_flamingo(), **FORMS[form])
    expected = logits(model)
    assert (expected - base).abs().max() > 0.1
    save_adapter(model, tmp_path / "adapter")
    loaded = quietly(PeftModel.from_pretrained, tiny_flamingo(), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded), expected, **near)
    torch.testing.assert_close(
        logits(load_adapter(tiny_flamingo(), tmp_path / "adapter")), expected, **near
    )
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, **near)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_lora_starts_where_pefts_own_does(tiny_flamingo, init):
    """And what it starts with is out of the base, as in PEFT."""
    torch.manual_seed(0)
    ours = tune(tiny_flamingo(), TuningConfig(init_lora_weights=init, r=4, train_gates=False))
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=TuningConfig().lora_target_modules,
        exclude_modules=r"(vision_encoder|perceiver)\..*",
        init_lora_weights=init,
    )
    reference = dict(get_peft_model(tiny_flamingo(), config).named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, reference[name], msg=name)


def test_a_random_start_is_drawn_again_where_a_run_goes_on(tiny_flamingo):
    """The base lacks what LoRA started with; the checkpoint holds only what became of it."""
    tuning = TuningConfig(init_lora_weights="pissa_niter_1", r=4)
    torch.manual_seed(7)
    first = dict(tune(tiny_flamingo(), tuning).named_parameters())
    drawn = torch.rand(1)
    torch.manual_seed(8)
    second = dict(tune(tiny_flamingo(), tuning).named_parameters())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("kind", ["int8", "bnb-int8", "bnb-nf4"])
@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, *({"init_lora_weights": i} for i in ("pissa", "olora", "orthogonal"))],
    ids=str,
)
def test_forms_that_read_the_weights_are_refused_on_quantised_ones(tiny_bases, kind, settings):
    if kind != "int8":
        pytest.importorskip("bitsandbytes")
    quantization = quantization_config(kind, torch.float32)
    base, _ = load_flamingo(tiny_bases["plain"], torch.float32, quantization)
    with pytest.raises(UserError, match="as float numbers, but lang_encoder.* is quantised"):
        check_patterns(base, TuningConfig(**settings))


def test_starts_that_do_not_fit_a_layer_are_refused(tiny_flamingo):
    with pytest.raises(UserError, match="takes 64 directions .* at most"):
        check_patterns(tiny_flamingo(), TuningConfig(r=64, init_lora_weights="pissa"))
    with pytest.raises(UserError, match="even ranks; .*k_proj has 3"):
        odd = TuningConfig(init_lora_weights="orthogonal", rank_pattern={"k_proj": 3})
        check_patterns(tiny_flamingo(), odd)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2)).eval()
    tuning = LoraTuning(lora_target_modules=["c_attn"], init_lora_weights="olora", r=2)
    with pytest.raises(UserError, match="c_attn, a Conv1D. Take pissa"):
        check_patterns(gpt2, tuning, scope="")
    tuning.init_lora_weights = "pissa"
    ids = torch.tensor([[1, 2, 3]])
    expected = gpt2(input_ids=ids).logits
    torch.testing.assert_close(tune(gpt2, tuning, scope="").eval()(input_ids=ids).logits, expected)


def test_dora_trains_in_bf16(tiny_flamingo):
    model = tune(tiny_flamingo().to(torch.bfloat16), TuningConfig(use_dora=True)).train()
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs(model), labels=inputs(model)["input_ids"]).loss.backward()
    lengths = [p for n, p in model.named_parameters() if "magnitude" in n]
    assert lengths and all(p.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in lengths)
    assert not any(
        isinstance(m, nn.Linear) and m.weight.grad is not None and "lora" not in n
        for n, m in model.named_modules()
    )

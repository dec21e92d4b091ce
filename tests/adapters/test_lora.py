import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionConfig, GPTNeoXConfig, OPTConfig

from tuninglab.adapters.lora import train_fresh_bridge, trainable_table, tune
from tuninglab.config.tuning import TuningConfig
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.flamingo import FlamingoForConditionalGeneration


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_wrapped_layers_are_those_peft_finds_outside_the_towers(tiny_flamingo):
    config = TuningConfig(train_gates=False)
    reference = get_peft_model(
        tiny_flamingo(),
        LoraConfig(
            r=16,
            target_modules=config.lora_target_modules,
            exclude_modules=r"(vision_encoder|perceiver)\..*",
        ),
    )
    assert trainable(tune(tiny_flamingo(), config)) == trainable(reference)


@torch.no_grad()
@pytest.mark.parametrize("end", ["decoder_layer.self_attn.q_proj", "attn.to_kv", "ff.3"])
def test_a_tuned_layer_computes_wx_plus_scaled_bax(tiny_flamingo, end):
    model = tune(tiny_flamingo(), TuningConfig(r=3, lora_alpha=6))
    layer = next(module for name, module in model.named_modules() if name.endswith(end))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    b.normal_()
    x = torch.randn(5, a.shape[1])
    expected = x @ layer.base_layer.weight.T + 2.0 * (x @ a.T) @ b.T
    torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
def test_fresh_lora_changes_nothing(tiny_flamingo):
    ids, pixels = torch.randint(0, 250, (2, 6)), torch.randn(2, 1, 1, 3, 16, 16)
    plain = tiny_flamingo()
    ids[:, 1] = plain.config.image_token_id
    tuned = tune(tiny_flamingo(), TuningConfig()).eval()
    expected = plain(input_ids=ids, pixel_values=pixels).logits
    assert torch.equal(tuned(input_ids=ids, pixel_values=pixels).logits, expected)


def test_only_lora_and_gates_train_by_default(tiny_flamingo):
    names = trainable(tune(tiny_flamingo(), TuningConfig()))
    besides = {name for name in names if ".lora_" not in name}
    assert {name.rpartition(".")[2] for name in besides} == {"attn_gate", "ff_gate"}
    assert all(name.startswith("base_model.model.lang_encoder.") for name in names)


def test_fresh_bridge_trains_in_full_without_lora_in_it(tiny_flamingo):
    choices = Choices()
    config = train_fresh_bridge(TuningConfig(train_gates=False), choices)
    names = trainable(tune(tiny_flamingo(), config))
    plain = tiny_flamingo()
    bridge = {n for n, _ in plain.named_parameters() if "perceiver" in n or "gated_cross" in n}
    assert {n for n in names if ".lora_" not in n} == {f"base_model.model.{n}" for n in bridge}
    assert not any("gated_cross" in n and ".lora_" in n for n in names)
    assert "closed" in choices.made[0]["reason"]


@pytest.mark.parametrize(("name", "rows"), [("plain", 2), ("tied", 1)])
def test_new_tokens_train_as_two_rows_of_each_table(tiny_flamingo, name, rows):
    model = tune(tiny_flamingo(name), TuningConfig(train_new_tokens=True))
    deltas = {n: p for n, p in model.named_parameters() if "trainable_tokens_delta" in n}
    assert len(deltas) == rows
    assert all(p.shape == (2, 32) and p.requires_grad for p in deltas.values())


def test_modules_to_save_stay_under_the_language_model(tiny_flamingo):
    names = trainable(tune(tiny_flamingo(), TuningConfig(modules_to_save=["norm", "perceiver"])))
    direct = {n.removeprefix("base_model.model.") for n in names if ".lora_" not in n}
    assert "lang_encoder.model.norm.weight" in direct
    assert "perceiver.latents" in direct
    assert not any(n.startswith("vision_encoder") for n in direct)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_bias_stays_out_of_the_towers(tiny_flamingo, bias):
    names = trainable(tune(tiny_flamingo(), TuningConfig(bias=bias)))
    assert all(name.startswith("base_model.model.lang_encoder.") for name in names)


def test_trained_parameters_are_float32_on_a_bf16_base(tiny_flamingo):
    model = tune(tiny_flamingo().to(torch.bfloat16), TuningConfig(train_perceiver=True))
    dtypes = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


def test_table_adds_up(tiny_flamingo):
    model = tune(tiny_flamingo(), TuningConfig(train_perceiver=True, train_new_tokens=True))
    rows = trainable_table(model)
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    assert sum(row["parameters"] for row in rows) == sum(trained)
    assert sum(row["tensors"] for row in rows) == len(trained)
    assert {row["dtype"] for row in rows} == {"float32"}
    assert "lang_encoder.model.layers.*.decoder_layer.self_attn.q_proj (LoRA)" in {
        row["module"] for row in rows
    }


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("qproj", "'qproj' hits no layer; did you mean .*q_proj"),
        ("fc1", "'fc1' hits only vision_encoder"),
        ("attn_gate", "'attn_gate' hits no layer"),
        ("self_attn", "'self_attn' hits no layer"),
    ],
)
def test_a_pattern_without_effect_is_an_error(tiny_flamingo, pattern, message):
    with pytest.raises(UserError, match=message) as caught:
        tune(tiny_flamingo(), TuningConfig(lora_target_modules=["q_proj", pattern]))
    assert "down_proj, to_q" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "sizes", "hint"),
    [
        (OPTConfig, {"word_embed_proj_dim": 16, "ffn_dim": 16}, "out_proj"),
        (GPTNeoXConfig, {"intermediate_size": 16}, "query_key_value"),
    ],
)
def test_other_language_models_list_their_own_layers(family, sizes, hint):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = FlamingoConfig(
        text_config=family(vocab_size=32, **shape, **sizes),
        vision_config=CLIPVisionConfig(intermediate_size=16, **shape),
        cross_attn_every_n_layers=1,
        perceiver_depth=1,
        image_token_id=31,
        eoc_token_id=30,
    )
    with pytest.raises(UserError, match="'o_proj' hits no layer") as caught:
        tune(FlamingoForConditionalGeneration(config), TuningConfig())
    assert hint in str(caught.value)


def test_patterns_only_in_what_trains_in_full_are_an_error(tiny_flamingo):
    config = TuningConfig(lora_target_modules=["to_q"], train_cross_attention=True)
    with pytest.raises(UserError, match="train in full"):
        tune(tiny_flamingo(), config)


@pytest.mark.parametrize(
    ("name", "message"),
    [("attn_gate", "train_gates"), ("perciever", "no module"), ("lm_haed", "lm_head")],
)
def test_unknown_modules_to_save_are_errors(tiny_flamingo, name, message):
    with pytest.raises(UserError, match=message):
        tune(tiny_flamingo(), TuningConfig(modules_to_save=[name]))

"""Parts that train in full or stay frozen, by their words: --train, --freeze, modules_to_save."""

import pytest
import torch
from peft import PeftModel

from tests.adapters.test_lora_forms import inputs, logits, lora_layers, trained
from tests.tiny import TOWERS, flamingo, flamingo_config
from tuninglab.adapters.base_format import left_in_float
from tuninglab.adapters.lora import check_patterns, trainable_table, tune
from tuninglab.adapters.places import direct_modules
from tuninglab.adapters.saving import load_adapter, save_adapter
from tuninglab.adapters.switching import plain_name
from tuninglab.config.tuning import TuningConfig
from tuninglab.errors import UserError
from tuninglab.int8.quantiser import Int8Config
from tuninglab.training.loop import set_training_mode

LM = ("self_attn", "mlp", "layernorm", "model.norm")


def names(model) -> set[str]:
    """What trains, without LoRA and as the base calls it."""
    named = model.named_parameters()
    plain = {plain_name(n) for n, p in named if p.requires_grad}
    return {name for name in plain if ".lora_" not in name}


def part(model, word) -> set[str]:
    """Parameters of a part, from what the parts are."""
    every = {name for name, _ in model.named_parameters()}
    inside = {
        "gates": lambda n: n.endswith("_gate"),
        "perceiver": lambda n: n.startswith("perceiver."),
        "cross_attention": lambda n: "gated_cross_attn_layer" in n,
        "vision": lambda n: n.startswith("vision_encoder.") and "post_layernorm" not in n,
        "lm": lambda n: "gated" not in n and n.startswith("lang_") and any(w in n for w in LM),
        "head": lambda n: "lm_head" in n,
        "embeddings": lambda n: "embed_tokens" in n,
    }[word]
    return {name for name in every if inside(name)}


@pytest.mark.parametrize(
    "word", ["gates", "perceiver", "cross_attention", "vision", "lm", "head", "embeddings"]
)
def test_a_word_trains_its_part_and_nothing_else(tiny_flamingo, word):
    base = tiny_flamingo()
    model = tune(tiny_flamingo(), TuningConfig(train_gates=False, train=[word]))
    if word == "gates":
        model = tune(tiny_flamingo(), TuningConfig(train=[word]))
    expected = part(base, word)
    assert names(model) == expected and expected
    # What trains in full has no LoRA besides.
    inside = {name.rpartition(".")[0] for name in expected}
    assert not inside & lora_layers(model)


def test_words_are_the_switches(tiny_flamingo):
    switches = TuningConfig(train_perceiver=True, train_cross_attention=True)
    words = TuningConfig(train=["perceiver", "cross_attention"])
    one, other = (tune(tiny_flamingo(), tuning) for tuning in (switches, words))
    assert names(one) == names(other)
    assert one.peft_config["default"].to_dict() == other.peft_config["default"].to_dict()
    assert trainable_table(one) == trainable_table(other)


def test_frozen_parts_get_no_lora_no_bias_and_no_gate(tiny_flamingo):
    model = tune(tiny_flamingo(), TuningConfig(freeze=["cross_attention", "gates"]))
    assert names(model) == set() and not any("gated" in name for name in lora_layers(model))
    model = tune(tiny_flamingo(), TuningConfig(freeze=["lm"], bias="all"))
    assert all("gated" in name for name in {*names(model), *lora_layers(model)})
    assert lora_layers(model)
    both = TuningConfig(train=["cross_attention"], freeze=["gates"])
    model = tune(tiny_flamingo(), both)
    assert names(model) == part(tiny_flamingo(), "cross_attention") - part(tiny_flamingo(), "gates")


@pytest.mark.parametrize(
    ("base", "settings", "said"),
    [
        ("plain", {"modules_to_save": ["mlp"], "freeze": ["lm"]}, "mlp .*belongs to lm"),
        ("tied", {"train": ["head"], "freeze": ["embeddings"]}, "lm_head .*tied weights are one"),
        ("plain", {"modules_to_save": ["act_fn"]}, "'act_fn' hits no parameter"),
        ("plain", {"freeze": ["lm", "cross_attention"]}, "or are frozen"),
        ("plain", {"part_learning_rates": {"vision": 1e-5}}, "vision, in which nothing trains"),
        ("plain", {"part_learning_rates": {"gates": 1.0}, "freeze": ["gates"]}, "names gates"),
        ("tied", {"train": ["head"], "part_learning_rates": {"head": 1e-5}}, "are: .*embeddings"),
    ],
)
def test_what_would_train_nothing_or_contradicts_is_refused(tiny_flamingo, base, settings, said):
    with pytest.raises(UserError, match=said):
        check_patterns(tiny_flamingo(base), TuningConfig(**settings))


def test_a_learning_rate_for_what_trains_is_taken(tiny_flamingo):
    rates = dict.fromkeys(("gates", "lm", "cross_attention", "embeddings", "head"), 1e-3)
    tuning = TuningConfig(train_new_tokens=True, part_learning_rates=rates)
    check_patterns(tiny_flamingo(), tuning)


def test_the_tower_gets_its_gradient_and_none_is_made_where_it_is_frozen(tiny_flamingo):
    model = tune(tiny_flamingo().double(), TuningConfig(train=["vision"])).double().eval()
    weight = model.get_base_model().vision_encoder.encoder.layers[0].mlp.fc1.weight

    def loss():
        out = model(**inputs(model)).logits
        return (out * torch.linspace(-1, 1, out.numel()).double().view_as(out)).sum()

    loss().backward()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()
    slope = float((weight.grad * direction).sum())
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            weight += sign * 1e-3 * direction
            ends.append(float(loss()))
            weight -= sign * 1e-3 * direction
    assert slope != 0 and (ends[0] - ends[1]) / 2e-3 == pytest.approx(slope, rel=1e-3)
    trains = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # All of it: DDP waits for a gradient of everything that trains.
    assert all(p.grad is not None for p in trains.values())
    frozen = tune(tiny_flamingo(), TuningConfig()).get_base_model()
    assert not frozen.encode_patches(inputs(frozen)["pixel_values"]).requires_grad
    assert model.get_base_model().encode_patches(inputs(model)["pixel_values"]).requires_grad


def test_a_trained_tower_is_in_training_mode_and_a_row_of_the_table(tiny_flamingo):
    model = tune(tiny_flamingo(), TuningConfig(train=["vision"]))
    set_training_mode(model)
    assert model.get_base_model().vision_encoder.training
    (row,) = [row for row in trainable_table(model) if row["module"].startswith("vision")]
    tower = part(tiny_flamingo(), "vision")
    assert (row["module"], row["tensors"]) == ("vision_encoder", len(tower))
    set_training_mode(model := tune(tiny_flamingo(), TuningConfig()))
    assert not model.get_base_model().vision_encoder.training


@pytest.mark.parametrize("kind", TOWERS)
def test_all_of_a_tower_trains_that_its_patches_depend_on(kind, tmp_path):
    def base():
        return flamingo(flamingo_config(tower=kind, text={"vocab_size": 300}), 0.5)

    model = trained(base(), train=["vision"])
    unused = {"clip_vision_model": ".post_layernorm.", "siglip_vision_model": ".head."}
    tower = {name for name, _ in base().named_parameters() if name.startswith("vision_encoder.")}
    kept = {name for name in tower if unused.get(kind, ".mask_token") not in name}
    assert {name for name in names(model) if name.startswith("vision_encoder.")} == kept != tower
    model(**inputs(model), labels=inputs(model)["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    before = dict(base().named_parameters())
    for name in kept:
        moved = model.get_base_model().get_parameter(name)
        # A bias of keys adds the same to all scores of a query: softmax takes it away again.
        assert not torch.equal(moved, before[name]) or name.endswith("k_proj.bias"), name
    save_adapter(model, tmp_path / "adapter")
    alone = PeftModel.from_pretrained(base(), str(tmp_path / "adapter"))
    assert torch.equal(logits(alone), logits(model))
    frozen = tune(base(), TuningConfig(freeze=["lm"]))
    assert not [name for name in names(frozen) if name.startswith("vision_encoder.")]


FULL = [
    {"train": ["vision"]},
    {"train": ["lm", "head", "embeddings"]},
    {"train": ["vision", "perceiver"], "freeze": ["gates"]},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens"]},
    {"modules_to_save": ["vision_encoder"]},
    {"train": ["lm", "cross_attention", "head"], "lora_target_modules": ["embed_tokens"]},
]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("base", ["plain", "tied"])
@pytest.mark.parametrize("settings", FULL, ids=str)
def test_parts_train_are_saved_and_load_with_peft_alone(
    tiny_flamingo, tmp_path, base, settings, precision
):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        model = trained(tiny_flamingo(base).to(precision), **settings)
        tuned = logits(model)
    before, moved = dict(tiny_flamingo(base).to(precision).named_parameters()), set()
    for name, parameter in model.get_base_model().named_parameters():
        old = before.get(plain_name(name))
        if old is not None and not torch.equal(parameter, old.to(parameter)):
            moved.add(plain_name(name))
    assert moved == names(model) and moved - part(tiny_flamingo(), "gates")
    save_adapter(model, tmp_path / "adapter")
    # What was trained in float32 is kept so: it comes back on a base in float32.
    model.float()
    expected = logits(model)
    alone = PeftModel.from_pretrained(
        tiny_flamingo(base).to(precision).float(), str(tmp_path / "adapter")
    )
    loaded = load_adapter(tiny_flamingo(base).to(precision).float(), tmp_path / "adapter")
    if precision == torch.float32:
        assert torch.equal(tuned, expected)
        assert torch.equal(logits(alone), expected) and torch.equal(logits(loaded), expected)


def test_the_matrix_under_a_tied_head_is_one(tiny_flamingo):
    model = tune(tiny_flamingo("tied"), TuningConfig(modules_to_save=["lm_head"]))
    lang = model.get_base_model().lang_encoder
    assert lang.lm_head.weight is lang.model.embed_tokens.weight
    assert lang.lm_head.weight.requires_grad
    assert "lang_encoder.model.embed_tokens.weight" in names(model)


def test_what_trains_in_full_stays_float_in_an_int8_base(tiny_flamingo):
    model = tiny_flamingo()
    for words in (["lm"], ["head"], ["cross_attention"], ["lm", "head"]):
        tuning = TuningConfig(train=words)
        covered = Int8Config(left_in_float(tuning, False), head=True).layers(model)
        direct = direct_modules(model, tuning, "lang_encoder")
        assert not [n for n in covered if any(f"{n}.".startswith(f"{d}.") for d in direct)]
        assert covered

import math
from typing import get_args

import pytest

from tuninglab.config import (
    ChatConfig,
    DemoConfig,
    FinetuneConfig,
    FlanT5Config,
    PlanConfig,
    PlanTextConfig,
)
from tuninglab.config.training import Saver
from tuninglab.config.tuning import T5_TARGET_MODULES
from tuninglab.errors import UserError

DOCUMENT = dict(
    r=16,
    lora_alpha=16,
    lora_target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "to_q", "to_kv", "to_out"]
    + ["ff.1", "ff.3"],
    lora_dropout=0.0,
    bias="none",
    modules_to_save=[],
    task_type="VL",
)


def test_the_defaults_hold():
    FinetuneConfig().validate()
    DemoConfig().validate()
    ChatConfig().validate()
    FlanT5Config().validate()


def test_tuning_config_is_taken_as_the_document_writes_it():
    assert FinetuneConfig(tuning_config=DOCUMENT).tuning_config == FinetuneConfig().tuning_config
    text = FlanT5Config(tuning_config={"r": 4}).tuning_config
    assert (text.r, tuple(text.lora_target_modules)) == (4, T5_TARGET_MODULES)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("weight_decay", math.nan),
        ("max_grad_norm", -0.1),
        ("batch_size", 0),
        ("epochs", 0),
        ("max_steps", 0),
        ("gradient_accumulation_steps", -1),
        ("cross_attn_every_n_layers", 0),
        ("logging_steps", 0),
        ("save_steps", 0),
        ("max_tokens", 0),
        ("checkpoint_every", 0),
        ("keep_checkpoints", 0),
        ("batch_size", 2.5),
        ("skip_bad_records", "no"),
        ("workers", -1),
        ("warmup_steps", -1),
        ("seed", 2**32),
        ("lr_scheduler", "cosin"),
        ("precision", "int4"),
        ("quantization", "int4"),
        ("run_name", ""),
        ("run_name", " "),
        ("run_name", "."),
        ("run_name", ".."),
        ("run_name", "a/b"),
        ("run_name", "a\\b"),
        ("run_name", "a\nb"),
        ("run_name", "a\0b"),
        ("run_name", "-x"),
        ("run_name", "x" * 300),
    ],
)
def test_a_value_out_of_range_names_its_flag_and_itself(flag, value):
    with pytest.raises(UserError) as caught:
        FinetuneConfig(**{flag: value}).validate()
    assert f"--{flag}" in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_validation_share_outside_its_range_is_refused(share):
    with pytest.raises(UserError, match="--val_split"):
        FinetuneConfig(data="x.json", val_split=share).validate()


@pytest.mark.parametrize(
    "settings",
    [
        {"resume": True, "overwrite": True, "run_name": "x"},
        {"resume": True},
        {"lang_encoder": "lm"},
        {"vision_encoder": "clip"},
        {"lang_encoder": "lm", "vision_encoder": "clip", "model": "other"},
        {"data": "x.json", "val_data": "y.json", "val_split": 0.1},
        {"data": "x.json", "eval_steps": 5},
        {"image_root": "pics"},
        {"val_data": "y.json"},
        {"val_split": 0.1},
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings):
    with pytest.raises(UserError, match="--"):
        FinetuneConfig(**settings).validate()


def test_a_leading_dash_in_a_run_name_is_said_to_be_the_reason():
    with pytest.raises(UserError, match="without leading dash"):
        FinetuneConfig(run_name="-x").validate()


@pytest.mark.parametrize("name", ["exp_1", "第一次", "a b", ".hidden", "v1.2"])
def test_plain_run_names_are_taken(name):
    FinetuneConfig(run_name=name).validate()


@pytest.mark.parametrize("tuning", [{"r": 0}, {"bias": "some"}, {"lora_dropout": 1.0}])
def test_the_tuning_config_is_checked_too(tuning):
    config = FinetuneConfig()
    for name, value in tuning.items():
        setattr(config.tuning_config, name, value)
    with pytest.raises(UserError, match=next(iter(tuning))):
        config.validate()


def test_paths_that_exist_become_absolute_and_hub_ids_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "embedded").mkdir()
    located = FinetuneConfig(model="base", data="nowhere.json").located()
    assert located.model == str(tmp_path / "base") and located.data == "nowhere.json"
    assert FinetuneConfig().located() == FinetuneConfig()
    assert FinetuneConfig(model="owner/name").located().model == "owner/name"


@pytest.mark.parametrize(
    "settings", [{"cross_attn_every_n_layers": 2}, {"embedded_pictures": 5, "data": "a.json"}]
)
def test_settings_without_effect_are_refused(settings):
    with pytest.raises(UserError, match="is given with"):
        FinetuneConfig(**settings).validate()


@pytest.mark.parametrize(
    ("settings", "in_finetune", "in_flan_t5"),
    [
        ({}, "none", "int8"),
        ({"enable_int8": True}, "int8", "int8"),
        ({"enable_int8": False}, "none", "none"),
        ({"quantization": "none"}, "none", "none"),
        ({"quantization": "bnb-int8"}, "bnb-int8", "bnb-int8"),
        ({"enable_int8": True, "quantization": "int8"}, "int8", "int8"),
        ({"enable_int8": False, "quantization": "none"}, "none", "none"),
        ({"enable_int8": False, "quantization": "bnb-nf4"}, "bnb-nf4", "bnb-nf4"),
    ],
)
def test_the_format_of_the_base(settings, in_finetune, in_flan_t5):
    for config_class, expected in ((FinetuneConfig, in_finetune), (FlanT5Config, in_flan_t5)):
        config = config_class(**settings)
        config.validate()
        assert config.base_format == expected


@pytest.mark.parametrize(
    ("enable_int8", "quantization"),
    [(True, "none"), (True, "bnb-int8"), (True, "bnb-nf4"), (False, "int8"), (False, "bnb-int8")],
)
def test_formats_that_contradict_each_other_are_refused(enable_int8, quantization):
    config = FlanT5Config(enable_int8=enable_int8, quantization=quantization)
    switch = f"--enable_int8 {str(enable_int8).lower()}"
    with pytest.raises(UserError, match=f"Drop {switch} to get {quantization}, or drop --quant"):
        config.validate()


def test_what_a_run_keeps_leaves_nothing_open_and_contradicts_nothing():
    for kind, switch in (("int8", True), ("none", False), ("bnb-int8", None), ("bnb-nf4", None)):
        kept = FlanT5Config(quantization=kind).resolved()
        kept.validate()
        assert (kept.base_format, kept.quantization, kept.enable_int8) == (kind, kind, switch)
        assert kept.savers == kept.memory_savers == FlanT5Config(quantization=kind).savers
        assert kept.resolved() == kept


def test_the_precision_that_was_decided_is_kept():
    assert FinetuneConfig().resolved().precision == "auto"
    kept = FinetuneConfig().resolved(precision="bf16")
    assert (kept.precision, kept.resolved()) == ("bf16", kept)


def test_all_memory_savers_come_with_int8_and_exact_ones_always_unless_they_are_named():
    exact = ["norm", "loss"]
    assert FinetuneConfig().savers == FlanT5Config(quantization="bnb-nf4").savers == exact
    assert FlanT5Config().savers == list(get_args(Saver)) and len(FlanT5Config().savers) == 6
    assert FlanT5Config(memory_savers=[]).savers == []
    assert FinetuneConfig(memory_savers=["loss"]).savers == ["loss"]
    with pytest.raises(UserError, match="--memory_savers is 'gl'; expected one of norm, glu"):
        FinetuneConfig(memory_savers=["gl"]).validate()  # type: ignore[list-item]


def test_every_block_and_every_nth_block_must_agree():
    for every in (None, 1):
        config = FinetuneConfig(activation_checkpointing=True, checkpoint_every=every)
        config.validate()
        assert config.checkpoint_interval == 1
    assert FinetuneConfig(checkpoint_every=3).checkpoint_interval == 3
    assert FinetuneConfig().checkpoint_interval is None
    with pytest.raises(UserError, match="--checkpoint_every is 2"):
        FinetuneConfig(activation_checkpointing=True, checkpoint_every=2).validate()


@pytest.mark.parametrize("word", ["false", "None", "true"])
def test_a_folder_of_features_is_no_yes_or_no(word):
    with pytest.raises(UserError, match="--cache_features is .*; expected auto, a folder"):
        FinetuneConfig(cache_features=word).validate()


@pytest.mark.parametrize("memory_gib", [0.0, -5.0, math.nan, math.inf, 1e300])
def test_no_device_has_such_memory(memory_gib):
    for kind in (PlanConfig, PlanTextConfig):
        with pytest.raises(UserError, match="--memory_gib is .*above 0"):
            kind(memory_gib=memory_gib).validate()


def test_a_plan_is_of_a_training_from_its_start():
    for name in ("compare", "resume"):
        with pytest.raises(UserError, match=f"--{name} has no use here"):
            PlanConfig(run_name="a", **{name: True}).validate()
    # As a recipe may have it, with a name to come.
    config = PlanConfig(resume="auto")
    config.validate()
    assert config.resume is False


def test_a_default_that_was_typed_is_no_wish_to_keep_what_was_decided():
    saved = FlanT5Config(run_name="a", batch_size=64)
    again = FlanT5Config(run_name="a", resume=True, batch_size=32, typed=frozenset({"batch_size"}))
    with pytest.raises(UserError, match="--batch_size is '?32'?, but .*64"):
        again.going_on_from(saved)
    again.batch_size = "auto"
    assert again.going_on_from(saved).batch_size == 64

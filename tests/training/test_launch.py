import pytest

from tuninglab.config import FinetuneConfig
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.training.hardware import make_accelerator
from tuninglab.training.launch import check_launcher, take_over_fsdp2

# As `accelerate launch` of 1.15 sets them for fsdp_version 2 and the answers of its questionnaire.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "ACCELERATE_MIXED_PRECISION": "bf16",
}


def test_fsdp2_is_taken_over_and_hidden_from_others():
    environment, choices = dict(FSDP2), Choices()
    config = take_over_fsdp2(FinetuneConfig(), choices, environment)
    assert config.parallel == "fsdp2"
    # transformers would leave weights on the meta device, accelerate would shard what is sharded.
    assert environment == {"ACCELERATE_MIXED_PRECISION": "bf16"}
    assert choices.made[0]["value"] == "fsdp2"
    check_launcher(environment)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OFFLOAD_PARAMS", "true"),
        ("RESHARD_AFTER_FORWARD", "false"),
        ("ACTIVATION_CHECKPOINTING", "true"),
        ("AUTO_WRAP_POLICY", "SIZE_BASED_WRAP"),
        ("IGNORED_MODULES", "lm_head"),
    ],
)
def test_what_fsdp2_asks_for_beside_is_refused_by_name(name, value):
    environment = FSDP2 | {f"FSDP_{name}": value}
    with pytest.raises(UserError, match=f"FSDP_{name} to '?{value}.*fsdp_{name.lower()} out"):
        take_over_fsdp2(FinetuneConfig(), Choices(), environment)


def test_it_does_not_overrule_what_was_typed():
    config = FinetuneConfig(parallel="ddp", typed=frozenset({"parallel"}))
    with pytest.raises(UserError, match="asks for FSDP2, and --parallel for ddp"):
        take_over_fsdp2(config, Choices(), dict(FSDP2))


@pytest.mark.parametrize("environment", [{}, {"ACCELERATE_USE_FSDP": "false", **FSDP2}])
def test_nothing_asked_for_changes_nothing(environment):
    environment = environment | {"ACCELERATE_USE_FSDP": "false"}
    before, config = dict(environment), FinetuneConfig()
    assert take_over_fsdp2(config, Choices(), environment) is config
    assert environment == before
    check_launcher(environment)


REFUSED = {
    "DeepSpeed": {"ACCELERATE_USE_DEEPSPEED": "true"},
    "Megatron-LM": {"ACCELERATE_USE_MEGATRON_LM": "1"},
    "a parallelism_config": {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
    r"FSDP \(version '?1'?\)": {"ACCELERATE_USE_FSDP": "true"},
    "--gradient_accumulation_steps": {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_does_not_work_is_refused_at_the_start(said, monkeypatch):
    for name, value in REFUSED[said].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        make_accelerator("fp32", Choices())

"""What `accelerate launch` says in the environment of its processes: honoured, or refused by name.

accelerate would read it too, and do as it says to a model that we spread ourselves. So what is
honoured is taken out of the environment, and nothing is left that would act unseen.
"""

import os
from collections.abc import MutableMapping
from dataclasses import replace
from typing import TypeVar

from tuninglab.config import TrainingConfig
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.untrusted import shown

Config = TypeVar("Config", bound=TrainingConfig)
Environment = MutableMapping[str, str]

FSDP = "ACCELERATE_USE_FSDP"
# What nothing here does the work of, why, and what does instead.
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": (
        "DeepSpeed",
        "its ZeRO partitions hide the shapes of weights, which LoRA and checkpoints need, and its "
        "checkpoints are of its own kind",
        "--parallel fsdp2 spreads weights, gradients and moments as ZeRO-3 does",
    ),
    "ACCELERATE_USE_MEGATRON_LM": (
        "Megatron-LM",
        "it trains models of its own code only",
        "--parallel fsdp2 spreads any Flamingo or T5",
    ),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "a parallelism_config (tensor, context or sequence parallel)",
        "the gated blocks have no such plan",
        "--parallel fsdp2 spreads all weights over all processes",
    ),
}
# Settings of FSDP that ask for something: the values that are as we do it, and what to do for
# others. What version 2 leaves without meaning is passed over, as accelerate does.
HONOURED = {
    "RESHARD_AFTER_FORWARD": ({"true"}, "each block is let go after its forward pass"),
    "OFFLOAD_PARAMS": ({"false"}, "shares stay on the device; --enable_int8 true halves them"),
    "AUTO_WRAP_POLICY": (
        {"transformer_based_wrap", "no_wrap"},
        "blocks are layers, whatever their size",
    ),
    "ACTIVATION_CHECKPOINTING": ({"false"}, "--activation_checkpointing true does that here"),
    "ACTIVATION_CHECKPOINTING_OFFLOAD": ({"false"}, "--activation_checkpointing true keeps less"),
    "IGNORED_MODULES": ({"", "none"}, "all modules are spread"),
}


def take_over_fsdp2(
    config: Config, choices: Choices, environment: Environment = os.environ
) -> Config:
    """The settings with `--parallel fsdp2` where accelerate's config asks for FSDP version 2.

    Its variables are gone then: accelerate and transformers would act on them as well.

    Raises:
        UserError: naming what it asks for beside, or that --parallel says otherwise.
    """
    if not _on(environment.get(FSDP)) or environment.get("FSDP_VERSION") != "2":
        return config
    for name, (values, instead) in HONOURED.items():
        given = environment.get(f"FSDP_{name}", "")
        if given and given.lower() not in values:
            raise UserError(
                f"accelerate's config sets FSDP_{name} to {shown(given)}, which is not done here: "
                f"{instead}. Leave fsdp_{name.lower()} out of it."
            )
    if config.parallel == "ddp" and "parallel" in (config.typed or ()):
        raise UserError(
            "accelerate's config asks for FSDP2, and --parallel for ddp. Leave out one of them."
        )
    for name in [name for name in environment if name == FSDP or name.startswith("FSDP_")]:
        del environment[name]
    choices.add("parallel asked for", "fsdp2", "accelerate's config; blocks are chosen here")
    return replace(config, parallel="fsdp2")


def check_launcher(environment: Environment = os.environ) -> None:
    """Pass if the launcher asks for nothing but processes.

    Raises:
        UserError: naming what it asks for, why that does not work here, and what does.
    """
    for variable, (name, why, instead) in REFUSED.items():
        if _on(environment.get(variable)):
            raise UserError(
                f"{variable} in the environment asks for {name}, as accelerate's config does. That "
                f"does not work here: {why}. {instead}. Start with torchrun, or leave it out of "
                "the config."
            )
    if _on(environment.get(FSDP)):
        # Version 2 is gone by now where a training may take it over.
        version = environment.get("FSDP_VERSION", "1")
        raise UserError(
            f"{FSDP} in the environment asks for FSDP (version {shown(version)}), as accelerate's "
            "config does. Version 1 makes one tensor of many weights, which frozen int8 or 16-bit "
            "ones and what trains beside them in float32 cannot become. Train with --parallel "
            "fsdp2, started by torchrun, or with fsdp_version: 2 in the config."
        )
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        # accelerate would divide every loss by it, beside ours that is normalised over the step.
        raise UserError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment is {shown(steps)}. Give "
            "--gradient_accumulation_steps instead, and unset it."
        )


def _on(value: str | None) -> bool:
    return (value or "").strip().lower() in ("true", "1", "yes", "y", "on", "t")

"""What a run adds to its base: memory savers, the attention that is fast here, what is tuned."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tuninglab.adapters.lora import direct_modules, tune
from tuninglab.adapters.products import use_onednn
from tuninglab.config import TrainingConfig
from tuninglab.console import Choices
from tuninglab.models.attention import choose_attention
from tuninglab.recipes.recipe import Tunable
from tuninglab.savers import add_savers, checkpoint_blocks
from tuninglab.training.hardware import DTYPES


def wrap(
    base: Tunable,
    name: str,
    config: TrainingConfig,
    scope: str,
    choices: Choices,
    answers: Sequence[int],
) -> Any:
    """Add memory savers and what is tuned to the base, in place; returns PEFT's model.

    Raises:
        UserError: the tuning does not fit the model.
    """
    model, tuning = base.model, base.tuning
    model.requires_grad_(False)
    # First of all, because a saver may make no gradient for the weights that it finds frozen.
    for module in direct_modules(model, tuning, scope):
        model.get_submodule(module).requires_grad_(True)
    add_kernels(model, config, bool(tuning.train_new_tokens or answers), choices)
    # LoRA last: it wraps the layers that the savers left in place.
    tuned = tune(model, tuning, name, scope, answers)
    if config.products == "onednn":
        use_onednn(tuned)
    if config.checkpoint_interval:
        count = checkpoint_blocks(tuned, config.checkpoint_interval)
        flag = "checkpoint_every" if config.checkpoint_every else "activation_checkpointing"
        choices.add("activations recomputed", f"in {count} blocks", f"--{flag}")
    return tuned


def add_kernels(model: Any, config: TrainingConfig, rows: bool, choices: Choices) -> None:
    """Add memory savers to a base, in place, and the attention that is fast here; says so.

    Args:
        model: a base without adapter, on its device.
        config: the settings, with the precision that was decided.
        rows: whether rows of the token tables train.
        choices: where each choice is said and kept.
    """
    # Tokens train as rows of a float table and head; the loss in chunks is for a frozen one.
    wanted = [name for name in config.savers if name not in ("embedding", "loss") or not rows]
    usual = "the base is int8" if config.base_format == "int8" else "the same numbers, less memory"
    why = (
        usual if config.savers == replace(config, memory_savers=None).savers else "--memory_savers"
    )
    for saver, what in add_savers(model, wanted).items():
        choices.add(f"memory saver {saver}", what, why)
    # That saver stands for keeping no probabilities.
    keeps = "attention" not in wanted
    if keeps and (chosen := choose_attention(model, DTYPES[config.precision])):
        choices.add("attention", *chosen)

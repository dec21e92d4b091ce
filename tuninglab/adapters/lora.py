"""A tuning config becomes a PEFT LoRA in one part of a model, and the rest of it is frozen.

That part, the scope, is a Flamingo's `lang_encoder`; a text-to-text model is tuned as a whole.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from tuninglab.adapters.int8_lora import know_int8
from tuninglab.adapters.places import (
    CHANGES_BASE,
    LoraPlaces,
    direct_modules,
    frozen_parameters,
    lora_places,
)
from tuninglab.adapters.token_rows import rows_problem, token_rows
from tuninglab.config.tuning import LoraTuning, TuningConfig
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.models.named_parts import GATED_BLOCK, GATES, SCOPE, part_namer

FRESH_REASON = (
    "the bridge is new and its gates are closed: LoRA behind a closed gate learns nothing"
)


def train_fresh_bridge(tuning: TuningConfig, choices: Choices) -> TuningConfig:
    """Turn on what a new Perceiver and new gated blocks need: training in full, said aloud."""
    choices.add("trained in full", "perceiver, gated cross-attention blocks", FRESH_REASON)
    return replace(tuning, train_gates=True, train_perceiver=True, train_cross_attention=True)


def check_patterns(model: nn.Module, tuning: LoraTuning, scope: str = SCOPE) -> None:
    """Check that `tune` could wrap this model, without changing it.

    Raises:
        UserError: a pattern hits nothing, or only a frozen part.
    """
    direct = direct_modules(model, tuning, scope)
    places = lora_places(model, tuning, direct, scope)
    token_rows(model, tuning)
    if tuning.train_answer_tokens == "true" and (problem := rows_problem(model, direct)):
        raise UserError(f"train_answer_tokens: {problem}.")
    if tuning.part_learning_rates:
        _check_rates(model, tuning, direct, places)


def tune(
    model: nn.Module,
    tuning: LoraTuning,
    base: str | None = None,
    scope: str = SCOPE,
    answer_ids: Sequence[int] = (),
) -> PeftModel:
    """Wrap a model for tuning: LoRA layers added, what else trains unfrozen, the rest frozen.

    All trained parameters are made float32, whatever the base is held in.

    Args:
        model: a Flamingo or a text-to-text model; it is changed in place.
        tuning: what to tune.
        base: what the user named as the base model, for adapter_config.json.
        scope: the part that is tuned; "" for all of it.
        answer_ids: tokens whose rows train, besides those of the new tokens if these do.

    Raises:
        UserError: a pattern hits nothing, or only a frozen part.
    """
    direct = direct_modules(model, tuning, scope)
    places = lora_places(model, tuning, direct, scope)
    init: Any = tuning.init_lora_weights
    lora = LoraConfig(
        r=tuning.r,
        lora_alpha=tuning.lora_alpha,
        target_modules=places.ends,
        exclude_modules=places.exclude,
        rank_pattern=dict(tuning.rank_pattern),
        alpha_pattern=dict(tuning.alpha_pattern),
        use_rslora=tuning.use_rslora,
        use_dora=tuning.use_dora,
        init_lora_weights=True if init == "default" else init,
        lora_dropout=tuning.lora_dropout,
        bias=tuning.bias,
        # PEFT refuses "VL" since 0.14; no task type means its generic wrapper.
        task_type=None if tuning.task_type == "VL" else tuning.task_type,
        trainable_token_indices=token_rows(model, tuning, answer_ids),
    )
    with torch.random.fork_rng(devices=[], enabled="_niter_" in tuning.init_lora_weights):
        # Drawn alike whenever the run goes on: the base lacks what LoRA starts with.
        if "_niter_" in tuning.init_lora_weights:
            torch.manual_seed(0)
        peft_model = quietly(get_peft_model, model, know_int8(lora))
    peft_model.peft_config["default"].base_model_name_or_path = base
    _unfreeze(model, tuning, direct, scope)
    _switch_off(model)
    _make_float(model)
    if tuning.init_lora_weights.startswith(CHANGES_BASE):
        # What was taken out of the base, for saving: see adapters/saving.py.
        state = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
        kept: Any = {name: t.detach().cpu().clone() for name, t in state.items() if "lora_" in name}
        peft_model.lora_start = kept
    return peft_model


def _switch_off(model: nn.Module) -> None:
    """Turn off what layers of PEFT and bitsandbytes would do to their inputs and weights."""
    module: Any
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # PEFT makes inputs float32 for LoRA's float32 weights; autocast, under which training
            # runs, makes them 16 bits again: the same numbers for 94 MiB of flan-t5-small's step.
            module.cast_input_dtype_enabled = False
        # bitsandbytes 0.50: on CPUs with AVX512-BF16 a forward pass in evaluation repacks 4-bit
        # weights for a kernel without backward: gradients are wrong from then on, without an error.
        elif hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quietly(wrap: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function of PEFT without the warnings that no user can act on."""
    with warnings.catch_warnings():
        # peft 0.21 asks transformers by a name that 5.23 deprecates.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        # GPT-2's Conv1D layers are stored transposed; PEFT notices, adapts, and says so.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        # PEFT asks a layer that is not its own for its sizes, gets them, and warns nevertheless.
        warnings.filterwarnings("ignore", message="Unsupported layer type.*Int8Linear")
        return wrap(*args, **kwargs)


def trainable_table(model: nn.Module) -> list[dict[str, Any]]:
    """List what trains: one row a kind of module, with `module`, `dtype`, `tensors`, `parameters`.

    Layers of equal name share a row (`*` for the layer number).
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        dtype = str(parameter.dtype).removeprefix("torch.")
        label = _row_label(name.removeprefix("base_model.model."))
        row = rows.setdefault(
            (label, dtype), {"module": label, "dtype": dtype, "tensors": 0, "parameters": 0}
        )
        row["tensors"] += 1
        row["parameters"] += parameter.numel()
    return list(rows.values())


def _unfreeze(model: nn.Module, tuning: LoraTuning, direct: list[str], scope: str) -> None:
    for name, parameter in model.named_parameters():
        if name.split(".")[-1] in GATES:
            parameter.requires_grad = "gates" in tuning.full_parts
        elif scope and not name.startswith(f"{scope}."):
            # bias="all" unfreezes the tower's and the Perceiver's biases too.
            parameter.requires_grad = False
    # By module: of tied weights the walk above sees the first name alone.
    for name in direct:
        model.get_submodule(name).requires_grad_(True)
    frozen = frozen_parameters(model, tuning)
    for parameter in model.parameters():
        if id(parameter) in frozen:
            parameter.requires_grad = False


def _make_float(model: Any) -> None:
    """Make what trains float32: AdamW steps of 1e-5 are lost in bf16's 8 bits of mantissa."""
    for module in model.modules():
        # States keep their format: a frozen norm in 16 bits takes no other (torch 2.13).
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            module.register_forward_hook(partial(_rows_in, module.weight.dtype))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    tower = getattr(model, "vision_encoder", None)
    if tower is not None and any(parameter.requires_grad for parameter in tower.parameters()):
        # Its last norm does not train, but is computed, on what those before it give.
        tower.float()


def _rows_in(dtype: torch.dtype, module: nn.Module, given: Any, rows: Tensor) -> Tensor:
    return rows.to(dtype)


def _check_rates(
    model: nn.Module, tuning: LoraTuning, direct: list[str], places: LoraPlaces
) -> None:
    """Refuse a learning rate for a part in which nothing trains."""
    part_of = part_namer(model)
    inside = {id(p) for name in direct for p in model.get_submodule(name).parameters()}
    # By the first name of tied weights, which is the one that the optimizer knows.
    trained = {part_of(name) for name, p in model.named_parameters() if id(p) in inside}
    trained |= {part_of(f"{name}.weight") for name in places.layers}
    trained |= {"gates"} & tuning.full_parts
    if tuning.train_new_tokens:
        trained |= {part_of(f"{name}.weight") for name in token_rows(model, tuning) or ()}
    if tuning.bias == "all":
        trained.add("lm")
    trained -= set(tuning.freeze)
    for part in tuning.part_learning_rates:
        if part not in trained:
            raise UserError(
                f"part_learning_rates names {part}, in which nothing trains here. Train it with "
                f"--train {part}, or leave it out; trained are: {', '.join(sorted(trained))}."
            )


def _row_label(name: str) -> str:
    name = re.sub(r"\.default(?=\.|$)", "", name)
    parts = re.sub(r"\.\d+\.", ".*.", name, count=1).split(".")
    for i, part in enumerate(parts):
        if part.startswith("lora_"):
            return ".".join(parts[:i]) + " (LoRA)"
        if part == "token_adapter":
            return ".".join(parts[:i]) + " (rows of tokens)"
        if part in GATES:
            return ".".join(parts)
    if parts[0] in ("perceiver", "vision_encoder"):
        return parts[0]
    if GATED_BLOCK in parts:
        return ".".join(parts[: parts.index(GATED_BLOCK) + 1])
    return ".".join(part for part in parts[:-1] if part != "base_layer")

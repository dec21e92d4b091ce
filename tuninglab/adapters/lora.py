"""A tuning config becomes a PEFT LoRA in one part of a model, and the rest of it is frozen.

That part, the scope, is a Flamingo's `lang_encoder`; a text-to-text model is tuned as a whole.
"""

import difflib
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from tuninglab.adapters.int8_lora import know_int8
from tuninglab.adapters.token_rows import token_rows
from tuninglab.config.tuning import LoraTuning, TuningConfig
from tuninglab.console import Choices
from tuninglab.errors import UserError

SCOPE = "lang_encoder"
GATED_BLOCK = "gated_cross_attn_layer"
GATES = ("attn_gate", "ff_gate")
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
    _lora_places(model, tuning, direct, scope)
    _check_trainable(model, direct)
    if tuning.train_new_tokens or tuning.train_answer_tokens == "true":
        token_rows(model, tuning)


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
    _check_trainable(model, direct)
    lora = LoraConfig(
        r=tuning.r,
        lora_alpha=tuning.lora_alpha,
        **_lora_places(model, tuning, direct, scope),
        lora_dropout=tuning.lora_dropout,
        bias=tuning.bias,
        # PEFT refuses "VL" since 0.14; no task type means its generic wrapper.
        task_type=None if tuning.task_type == "VL" else tuning.task_type,
        trainable_token_indices=token_rows(model, tuning, answer_ids),
    )
    peft_model = quietly(get_peft_model, model, know_int8(lora))
    peft_model.peft_config["default"].base_model_name_or_path = base
    _unfreeze(model, tuning, direct, scope)
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
    for parameter in model.parameters():
        if parameter.requires_grad:
            # AdamW steps of 1e-5 are lost in bf16's 8 bits of mantissa.
            parameter.data = parameter.data.float()
    return peft_model


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


def matching_modules(model: nn.Module, pattern: str) -> list[str]:
    """Names of the matrix modules that a pattern hits, by PEFT's rule: equal, or `.` + end."""
    return [name for name, _ in _linear_modules(model) if _ends_with(name, pattern)]


def _ends_with(name: str, pattern: str) -> bool:
    return name == pattern or name.endswith("." + pattern)


def _linear_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    # Linear, its int8 forms, GPT-2's Conv1D and Embedding: whatever holds one matrix.
    return [
        (name, module)
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    ]


def _inside(name: str, scope: str) -> bool:
    return not scope or name.startswith(scope + ".")


def _lora_places(
    model: nn.Module, tuning: LoraTuning, direct: list[str], scope: str
) -> dict[str, Any]:
    """Where PEFT puts LoRA: the ends of names as they were asked for, and what is left out.

    Raises:
        UserError: a pattern hits nothing, or only what is left out.
    """
    problems = []
    for pattern in tuning.lora_target_modules:
        hits = matching_modules(model, pattern)
        if not any(_inside(name, scope) for name in hits):
            problems.append(_pattern_problem(model, pattern, hits, scope))
    if problems:
        listed, under = ", ".join(_suffixes(model, scope)), f" under {scope}" if scope else ""
        hint = f"Linear layers{under} end in: {listed}. Change lora_target_modules."
        raise UserError("\n".join([*problems, hint]))
    # A module that trains in full gets no LoRA: the same change would be learned twice.
    left_out = [rf"{re.escape(name)}(?:\..*)?" for name in direct if _inside(name, scope)]
    # The tower and the Perceiver have layers of the same names.
    left_out += [rf"(?!{scope}\.).*"] * bool(scope)
    exclude = "|".join(left_out)
    hits = [name for end in tuning.lora_target_modules for name in matching_modules(model, end)]
    if all(re.fullmatch(exclude, name) for name in hits):
        raise UserError(
            "lora_target_modules names only layers that train in full here; "
            f"name one that does not, of: {', '.join(_suffixes(model, scope))}."
        )
    return {"target_modules": tuning.lora_target_modules, "exclude_modules": exclude or None}


def _pattern_problem(model: nn.Module, pattern: str, hits: list[str], scope: str) -> str:
    near = difflib.get_close_matches(pattern, _suffixes(model, scope), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    if hits:
        part = hits[0].split(".")[0]
        return f"LoRA pattern {pattern!r} hits only {part} ({len(hits)} layers), not {scope}{hint}"
    return f"LoRA pattern {pattern!r} hits no layer{hint}"


def _suffixes(model: nn.Module, scope: str) -> list[str]:
    """Shortest telling ends of the names of all linear modules in the scope."""
    ends = {}
    for name, module in _linear_modules(model):
        if _inside(name, scope) and not isinstance(module, nn.Embedding):
            parts = name.split(".")
            # "1" says nothing, "ff.1" does.
            ends[".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])] = None
    return list(ends)


def direct_modules(model: nn.Module, tuning: LoraTuning, scope: str) -> list[str]:
    """Full names of the modules that train in full, in place.

    PEFT's own modules_to_save would train a copy and match by bare string ends ("norm" also hits
    CLIP's layer norms); the keys in the adapter file are the same.
    """
    known = [name for name, _ in model.named_modules() if name]
    wanted = list(tuning.modules_to_save)
    wanted += ["perceiver"] * tuning.train_perceiver
    wanted += [GATED_BLOCK] * tuning.train_cross_attention
    direct: dict[str, None] = {}
    for end in wanted:
        inside = (name for name in known if _inside(name, scope) and _ends_with(name, end))
        hits = [name for name in known if name == end] or list(inside)
        if not hits:
            raise UserError(_module_problem(known, end, scope))
        direct.update(dict.fromkeys(hits))
    return list(direct)


def _check_trainable(model: nn.Module, direct: list[str]) -> None:
    for module in direct:
        for name, parameter in model.get_submodule(module).named_parameters():
            if not parameter.is_floating_point():
                raise UserError(
                    f"{module} should train in full, but {name} in it was saved quantised "
                    f"({str(parameter.dtype).removeprefix('torch.')}). Name a base with float "
                    "weights; what trains in full is left out when that is quantised"
                )


def _module_problem(known: list[str], wanted: str, scope: str) -> str:
    if wanted in GATES:
        return f"modules_to_save: {wanted} is a parameter, no module. Use train_gates instead."
    ends = list(dict.fromkeys(name.split(".")[-1] for name in known if name.startswith(scope)))
    near = difflib.get_close_matches(wanted, ends, n=3)
    named = [end for end in ends if not end.isdigit()]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(named)}."
    return f"modules_to_save: {wanted!r} hits no module{f' under {scope}' if scope else ''}. {hint}"


def _unfreeze(model: nn.Module, tuning: LoraTuning, direct: list[str], scope: str) -> None:
    for name, parameter in model.named_parameters():
        if any(name.startswith(module + ".") for module in direct):
            parameter.requires_grad = True
        elif name.split(".")[-1] in GATES:
            parameter.requires_grad = tuning.train_gates
        elif not _inside(name, scope):
            # bias="all" unfreezes the tower's and the Perceiver's biases too.
            parameter.requires_grad = False


def _row_label(name: str) -> str:
    name = re.sub(r"\.default(?=\.|$)", "", name)
    parts = re.sub(r"\.\d+\.", ".*.", name, count=1).split(".")
    for i, part in enumerate(parts):
        if part in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"):
            return ".".join(parts[:i]) + " (LoRA)"
        if part == "token_adapter":
            return ".".join(parts[:i]) + " (rows of tokens)"
        if part in GATES:
            return ".".join(parts)
    if parts[0] == "perceiver":
        return "perceiver"
    if GATED_BLOCK in parts:
        return ".".join(parts[: parts.index(GATED_BLOCK) + 1])
    return ".".join(part for part in parts[:-1] if part != "base_layer")

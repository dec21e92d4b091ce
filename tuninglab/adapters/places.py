"""Where a model is tuned: the layers that get LoRA, and the modules that train in full."""

import difflib
import re
from typing import Any, NamedTuple

from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from tuninglab.config.tuning import ALL_LINEAR, PREFIX, LoraTuning
from tuninglab.errors import UserError
from tuninglab.int8.linear import Int8Linear
from tuninglab.models.named_parts import GATED_BLOCK, GATES, SCOPE, modules_of, part_namer

# Starts of LoRA that take what they begin with out of the weights of the base.
CHANGES_BASE = ("pissa", "olora")


class LoraPlaces(NamedTuple):
    """Where PEFT puts LoRA.

    Attributes:
        ends: of the names of layers, as they were asked for.
        exclude: a regular expression for the names of modules that get none.
        layers: the names that come of both.
    """

    ends: list[str]
    exclude: str | None
    layers: list[str]


def lora_places(
    model: Any, tuning: LoraTuning, direct: list[str], scope: str = SCOPE
) -> LoraPlaces:
    """Where PEFT puts LoRA, checked.

    Raises:
        UserError: a pattern hits nothing, or only what is left out; or a layer is of a kind that
            the settings of LoRA do not fit.
    """
    # A module that trains in full gets no LoRA: the same change would be learned twice.
    closed = direct + [name for part in tuning.freeze for name in _modules_of_part(model, part)]
    ends = tuning.lora_target_modules
    if ends[0] in ALL_LINEAR:
        head = model.get_output_embeddings()
        closed += [name for name, module in model.named_modules() if module is head]
        ends = _suffixes(model, scope, closed)
    problems = []
    for pattern in ends:
        hits = matching_modules(model, pattern)
        if not any(_inside(name, scope) for name in hits):
            problems.append(_pattern_problem(model, pattern, hits, scope))
    if problems:
        listed, under = ", ".join(_suffixes(model, scope)), f" under {scope}" if scope else ""
        hint = (
            f"Linear layers{under} end in: {listed}. Change lora_target_modules "
            f"(to tune: --{PREFIX}lora_target_modules); "
            "all-linear takes all of these but the output layer."
        )
        raise UserError("\n".join([*problems, hint]))
    left_out = [rf"{re.escape(name)}(?:\..*)?" for name in closed if _inside(name, scope)]
    # The tower and the Perceiver have layers of the same names.
    left_out += [rf"(?!{scope}\.).*"] * bool(scope)
    exclude = "|".join(left_out)
    hits = [name for end in ends for name in matching_modules(model, end)]
    layers = [name for name in dict.fromkeys(hits) if not re.fullmatch(exclude, name)]
    if not layers:
        raise UserError(
            f"--{PREFIX}lora_target_modules names only layers that train in full here or are "
            f"frozen; name one that does not, of: {', '.join(_suffixes(model, scope, closed))}."
        )
    _check_numbers(tuning, layers)
    _check_layers(model, tuning, layers)
    return LoraPlaces(ends, exclude or None, layers)


def rank_of(tuning: LoraTuning, layer: str) -> int:
    """The rank of a layer, by PEFT's rule: the first pattern that hits it."""
    key = get_pattern_key(list(tuning.rank_pattern), layer)
    return tuning.rank_pattern.get(key, tuning.r)


def _check_numbers(tuning: LoraTuning, layers: list[str]) -> None:
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = list(getattr(tuning, name))
        used = {get_pattern_key(patterns, layer) for layer in layers}
        for pattern in (pattern for pattern in patterns if pattern not in used):
            if any(get_pattern_key([pattern], layer) == pattern for layer in layers):
                raise UserError(
                    f"{name}: {pattern!r} hits only layers that a pattern before it hits, which is "
                    "the one that counts. Put it first, or drop it."
                )
            ends = _ends(layers)
            near = difflib.get_close_matches(pattern, ends, n=2, cutoff=0.5)
            raise UserError(
                f"{name}: {pattern!r} hits no layer with LoRA. "
                f"{'Did you mean' if near else 'Their names end in'}: {', '.join(near or ends)}."
            )


def _check_layers(model: nn.Module, tuning: LoraTuning, layers: list[str]) -> None:
    """Refuse what a start of LoRA, or DoRA, cannot do with a layer."""
    init = tuning.init_lora_weights
    changes = init.startswith(CHANGES_BASE)
    reader = "" if init in ("default", "gaussian") else f"init_lora_weights {init}"
    reader = "use_dora" if tuning.use_dora else reader
    for name in layers:
        module: Any = model.get_submodule(name)
        rank, least = rank_of(tuning, name), min(module.weight.shape)
        if reader and not module.weight.is_floating_point():
            raise UserError(
                f"{reader} needs the base's weights as float numbers, but {name} is quantised. "
                "Leave it out, or load the base with --quantization none."
            )
        if changes and rank > least:
            raise UserError(
                f"init_lora_weights {init} takes {rank} directions out of a weight, but {name} "
                f"has {least}. Give a rank of at most {least}; rank_pattern gives it to one layer."
            )
        if init == "olora" and isinstance(module, Conv1D):
            raise UserError(f"init_lora_weights olora cannot read {name}, a Conv1D. Take pissa.")
        if init == "orthogonal" and rank % 2:
            raise UserError(f"init_lora_weights orthogonal needs even ranks; {name} has {rank}.")


def matching_modules(model: nn.Module, pattern: str) -> list[str]:
    """Names of the matrix modules that a pattern hits, by PEFT's rule: equal, or `.` + end."""
    return [name for name, _ in _matrix_modules(model) if _ends_with(name, pattern)]


def _ends_with(name: str, pattern: str) -> bool:
    return name == pattern or name.endswith("." + pattern)


def _matrix_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    # Linear, its int8 forms, GPT-2's Conv1D and Embedding: whatever holds one matrix.
    return [
        (name, module)
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    ]


def _inside(name: str, scope: str) -> bool:
    return not scope or name.startswith(scope + ".")


def _pattern_problem(model: nn.Module, pattern: str, hits: list[str], scope: str) -> str:
    near = difflib.get_close_matches(pattern, _suffixes(model, scope), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    if hits:
        part = hits[0].split(".")[0]
        return f"LoRA pattern {pattern!r} hits only {part} ({len(hits)} layers), not {scope}{hint}"
    return f"LoRA pattern {pattern!r} hits no layer{hint}"


def _suffixes(model: nn.Module, scope: str, closed: list[str] | None = None) -> list[str]:
    """Shortest telling ends of the names of all linear modules in the scope, not in `closed`."""
    linear = (nn.Linear, Int8Linear, Conv1D)
    shut = tuple(f"{name}." for name in closed or [])
    return _ends(
        name
        for name, module in model.named_modules()
        if _inside(name, scope) and isinstance(module, linear) and not f"{name}.".startswith(shut)
    )


def _ends(names: Any) -> list[str]:
    ends = {}
    for parts in (name.split(".") for name in names):
        # "1" says nothing, "ff.1" does.
        ends[".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])] = None
    return list(ends)


def direct_modules(model: nn.Module, tuning: LoraTuning, scope: str = SCOPE) -> list[str]:
    """Full names of the modules that train in full, in place.

    PEFT's own modules_to_save would train a copy and match by bare string ends ("norm" also hits
    CLIP's layer norms); the keys in the adapter file are the same.

    Raises:
        UserError: there is no such module, it holds no parameter, or it is frozen or quantised.
    """
    known = [name for name, _ in model.named_modules() if name]
    direct: dict[str, None] = {}
    for end in tuning.modules_to_save:
        inside = (name for name in known if _inside(name, scope) and _ends_with(name, end))
        hits = [name for name in known if name == end] or list(inside)
        if not hits:
            raise UserError(_module_problem(known, end, scope))
        # Of the tower that leaves out what no loss reaches.
        hits = modules_of(model, "vision") if hits == ["vision_encoder"] else hits
        if not any(True for name in hits for _ in model.get_submodule(name).parameters()):
            raise UserError(
                f"--{PREFIX}modules_to_save: {end!r} hits no parameter ({hits[0]} holds none), so "
                "nothing would train. Leave it out."
            )
        direct.update(dict.fromkeys(hits))
    for part in sorted(tuning.full_parts - {"gates"}):
        direct.update(dict.fromkeys(_modules_of_part(model, part)))
    _check_direct(model, list(direct), tuning)
    return list(direct)


def frozen_parameters(model: Any, tuning: LoraTuning) -> dict[int, str]:
    """The parameters that --freeze names, and unused ones, by id; tied ones under each name."""
    part_of, frozen = part_namer(model), {*tuning.freeze, "unused"}
    named = model.named_parameters(remove_duplicate=False)
    return {id(p): part_of(name) for name, p in named if part_of(name) in frozen}


def _modules_of_part(model: nn.Module, part: str) -> list[str]:
    if part == "gates":
        return []
    if part == "cross_attention":
        # The gates in it come along.
        found = [name for name, _ in model.named_modules() if _ends_with(name, GATED_BLOCK)]
    else:
        found = modules_of(model, part)
    if not found:
        raise UserError(f"--train or --freeze names {part}, which this model does not have.")
    return found


def _check_direct(model: nn.Module, direct: list[str], tuning: LoraTuning) -> None:
    frozen = frozen_parameters(model, tuning)
    for module in direct:
        for name, parameter in model.get_submodule(module).named_parameters():
            part = frozen.get(id(parameter), "gates")
            if part not in ("gates", "unused"):
                raise UserError(
                    f"{module} should train in full, but {name} in it belongs to {part}, which "
                    "--freeze names (tied weights are one). Drop one of them."
                )
            if not parameter.is_floating_point():
                raise UserError(
                    f"{module} should train in full, but {name} in it was saved quantised "
                    f"({str(parameter.dtype).removeprefix('torch.')}). Name a base with float "
                    "weights; what trains in full is left out when that is quantised"
                )


def _module_problem(known: list[str], wanted: str, scope: str) -> str:
    flag = f"--{PREFIX}modules_to_save"
    if wanted in GATES:
        return f"{flag}: {wanted} is a parameter, no module. Use train_gates instead."
    ends = list(dict.fromkeys(name.split(".")[-1] for name in known if name.startswith(scope)))
    near = difflib.get_close_matches(wanted, ends, n=3)
    named = [end for end in ends if not end.isdigit()]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(named)}."
    return f"{flag}: {wanted!r} hits no module{f' under {scope}' if scope else ''}. {hint}"

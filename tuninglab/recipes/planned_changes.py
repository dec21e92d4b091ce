"""What makes a run fit that does not: changes of its settings, each planned like the run itself."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from tuninglab.config import FinetuneConfig, TrainingConfig
from tuninglab.config.training import EXACT_SAVERS
from tuninglab.recipes.defaults import LARGE
from tuninglab.recipes.planned_data import PlannedData, without_longer
from tuninglab.recipes.planned_machine import Machine
from tuninglab.recipes.planned_run import Models, Plan, plan_run

# The share of records, the longest, that a limit of tokens leaves out.
LEFT_OUT = 0.1
# Pairs of changes that are planned.
MOST_PAIRS = 6
# Changes of a large model that fit, after which no more are looked for: each takes seconds.
ENOUGH = 2


class Setting(NamedTuple):
    """What a plan is made of."""

    config: TrainingConfig
    data: PlannedData
    machine: Machine


class Change(NamedTuple):
    """A change of a setting.

    Args:
        flags: that make it.
        setting: that it leads to.
        price: what it costs besides time; "" for nothing.
    """

    flags: str
    setting: Setting
    price: str = ""


@dataclass(frozen=True)
class Suggestion:
    """A setting that changes lead to, with its plan."""

    flags: tuple[str, ...]
    prices: tuple[str, ...]
    setting: Setting
    plan: Plan


def changes_that_fit(setting: Setting, plan: Plan, models: Models) -> list[Suggestion]:
    """What makes a run fit: single changes, or pairs where none does alone.

    Args:
        setting: of the run.
        plan: of it, which does not fit.
        models: without weights, those that were made so far.

    Returns:
        Suggestions, those that fit, the cheapest in time first. Where none was found, the one that
        needs the least.
    """
    start = Suggestion((), (), setting, plan)
    enough = ENOUGH if models(setting.config, setting.data).num_parameters() >= LARGE else None
    singles: list[Suggestion] = []
    for way in (_smaller_batches, *WAYS):
        singles += [made for made in [_changed(start, way, models)] if made is not None]
        if enough and sum(one.plan.fits for one in singles) >= enough:
            break
    fitting = [one for one in singles if one.plan.fits]
    pairs = [] if fitting else _pairs(singles, models, enough)
    fitting = fitting or [pair for pair in pairs if pair.plan.fits]
    if not fitting:
        return sorted([*singles, *pairs], key=lambda one: one.plan.needed)[:1]
    return sorted(fitting, key=lambda one: one.plan.times.step_s if one.plan.times else 0.0)


def _pairs(singles: list[Suggestion], models: Models, enough: int | None) -> list[Suggestion]:
    """Further changes upon single ones, the smallest of these first."""
    made: list[Suggestion] = []
    for single in sorted(singles, key=lambda one: one.plan.needed):
        for way in (_smaller_batches, *WAYS):
            fit = sum(one.plan.fits for one in made)
            if len(made) >= MOST_PAIRS or (enough and fit >= enough):
                return made
            pair = _changed(single, way, models)
            same = pair is not None and {*pair.flags} in [{*one.flags} for one in made]
            made += [] if pair is None or same else [pair]
    return made


def _changed(of: Suggestion, way: "Way", models: Models) -> Suggestion | None:
    """A setting changed in one way, planned; None where it can change nothing so."""
    change = way(of.setting, of.plan)
    if change is None:
        return None
    plan = _plan(change.setting, models)
    flags, prices = (*of.flags, change.flags), (*of.prices, change.price)
    if way is not _smaller_batches:
        return Suggestion(flags, prices, change.setting, plan)
    # The size was foreseen from what a row took; the plan may show that it was not enough.
    while not plan.fits and (smaller := _smaller_batches(change.setting, plan)) is not None:
        change = smaller
        plan = _plan(change.setting, models)
    return Suggestion((*of.flags, change.flags), prices, change.setting, plan)


def _plan(setting: Setting, models: Models) -> Plan:
    return plan_run(*setting, models=models, quick=True)


Way = Callable[[Setting, Plan], Change | None]


def _smaller_batches(setting: Setting, plan: Plan) -> Change | None:
    """Fewer rows at a time, and as many more forward passes: the same rows a step."""
    size: Any = setting.config.batch_size
    fixed = sum(plan.held.values())
    row = max(1, plan.needed - fixed) / size
    fits = (plan.machine.available - fixed) / row
    sizes = [rows for rows in range(1, size) if size % rows == 0]
    if not sizes:
        return None
    rows = max((rows for rows in sizes if rows <= fits), default=1)
    accumulation = setting.config.gradient_accumulation_steps * (size // rows)
    changed = {"batch_size": rows, "gradient_accumulation_steps": accumulation}
    return _with(setting, " ".join(f"--{name} {value}" for name, value in changed.items()), changed)


def _features(setting: Setting, plan: Plan) -> Change | None:
    """The tower computes each picture once, ahead, and is not there while training."""
    config = setting.config
    if not isinstance(config, FinetuneConfig) or config.cache_features is not None:
        return None
    trained = {"vision"} & config.tuning_config.full_parts
    if trained or any("vision" in name for name in config.tuning_config.modules_to_save):
        return None
    price = "one pass over all pictures before the training, and their features on disk"
    return _with(setting, "--cache_features", {"cache_features": "auto"}, price)


def _checkpointing(every: int) -> Way:
    def way(setting: Setting, plan: Plan) -> Change | None:
        """The activations of every n-th block are computed again for the backward pass."""
        now = setting.config.checkpoint_interval
        if now is not None and now <= every:
            return None
        changed = {"checkpoint_every": every, "activation_checkpointing": False}
        return _with(setting, f"--checkpoint_every {every}", changed)

    return way


def _bf16(setting: Setting, plan: Plan) -> Change | None:
    """Weights and products in 16 bits, where the machine computes in them."""
    speed = setting.machine.speed
    native = speed is None or speed.products.get("bf16", 0) > speed.products["fp32"]
    if setting.config.precision != "fp32" or not native:
        return None
    return _with(setting, "--precision bf16", {"precision": "bf16"}, "numbers of 8 bits precision")


def _int8(setting: Setting, plan: Plan) -> Change | None:
    """The frozen base in int8, with all memory savers."""
    config = setting.config
    if config.base_format != "none":
        return None
    typed = config.typed or frozenset()
    changed = {"quantization": "int8", "enable_int8": True}
    if config.savers == EXACT_SAVERS and "memory_savers" not in typed:
        changed["memory_savers"] = None
    # Beside a --quantization that was given the switch would contradict it.
    flags = "--quantization int8" if "quantization" in typed else "--enable_int8 true"
    return _with(setting, flags, changed, "a base rounded to 8 bits")


def _shorter(setting: Setting, plan: Plan) -> Change | None:
    """Without the longest records."""
    config, tokens = setting.config, setting.data.train.tokens
    limit = int(np.quantile(tokens, 1 - LEFT_OUT))
    if config.data is None or config.pack_tokens or limit >= tokens.max():
        return None
    left_out = int((tokens > limit).sum())
    changed = {"max_tokens": limit, "skip_bad_records": True}
    flags = f"--max_tokens {limit} --skip_bad_records true"
    shorter = setting._replace(data=without_longer(setting.data, limit))
    return _with(shorter, flags, changed, f"{left_out:,} of {len(tokens):,} records are left out")


def _sharded(setting: Setting, plan: Plan) -> Change | None:
    """The weights shared out over the devices of all processes."""
    config, machine = setting.config, setting.machine
    if machine.processes == 1 or config.parallel == "fsdp2":
        return None
    return _with(setting, "--parallel fsdp2", {"parallel": "fsdp2"})


WAYS: tuple[Way, ...] = (
    *(_sharded, _features, _checkpointing(2), _checkpointing(1), _bf16, _int8, _shorter),
)


def _with(setting: Setting, flags: str, changed: dict[str, Any], price: str = "") -> Change:
    config = replace(setting.config, **changed)
    return Change(flags, setting._replace(config=config.resolved(config.precision)), price)

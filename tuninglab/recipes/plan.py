"""`tuninglab plan`: memory and time of a run before it starts, and what makes it fit."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from tuninglab.config import (
    FinetuneConfig,
    FlanT5Config,
    PlanConfig,
    PlanTextConfig,
    TrainingConfig,
)
from tuninglab.config.training import Precision
from tuninglab.console import Choices
from tuninglab.data.prompt import answer_ids, count_tokens, counting_key
from tuninglab.data.sample import Pair
from tuninglab.data.text_batches import ended_ids, pair_tokens
from tuninglab.embedded import text_base_directory
from tuninglab.errors import UserError
from tuninglab.evaluation.task import Task
from tuninglab.inspection.presets import PRESETS
from tuninglab.models.parts import load_tokenizer
from tuninglab.recipes import flamingo, flan_t5
from tuninglab.recipes.defaults import decide
from tuninglab.recipes.loaders import readable
from tuninglab.recipes.planned_batch_size import largest_batch
from tuninglab.recipes.planned_changes import Setting, changes_that_fit
from tuninglab.recipes.planned_data import PlannedData, measure_data
from tuninglab.recipes.planned_figures import figures_of, too_large
from tuninglab.recipes.planned_machine import Machine, planned_machine
from tuninglab.recipes.planned_model import planned_base
from tuninglab.recipes.planned_run import Models, plan_run, seen_side
from tuninglab.recipes.recipe import Base
from tuninglab.reporting.data_reader import open_reader
from tuninglab.reporting.plan_text import text_of
from tuninglab.training.hardware import check_processes, choose_precision, use_threads

ESTIMATE = "Tokens are counted by the tokenizer of the embedded base: a preset has none. "


def plan(config: PlanConfig) -> tuple[dict[str, Any], str, UserError | None]:
    """Plan a run of finetune.

    Returns:
        What `--json` prints, the text for people, and that it does not fit.

    Raises:
        UserError: the settings or the data do not allow the run.
    """
    return _planned(config, FinetuneConfig)


def plan_text(config: PlanTextConfig) -> tuple[dict[str, Any], str, UserError | None]:
    """Plan a run of flan-t5, as `plan` does.

    Raises:
        UserError: the settings or the data do not allow the run.
    """
    return _planned(config, FlanT5Config)


def _planned(
    asked: PlanConfig | PlanTextConfig, recipe: type[TrainingConfig]
) -> tuple[dict[str, Any], str, UserError | None]:
    check_processes()
    use_threads(asked.threads)
    models = Models(choices := Choices())
    machine = planned_machine(asked.device, asked.processes, asked.memory_gib)
    config = recipe(**{f.name: getattr(asked, f.name) for f in fields(recipe)}).located()
    config = config.resolved(_precision(config, machine, choices))
    config, data = _decided(config, machine, models, choices)
    plan = plan_run(config, data, machine, models, choices)
    setting = Setting(config, data, machine)
    found = [] if plan.fits else changes_that_fit(setting, plan, models)
    figures = figures_of(plan, found, choices)
    return figures, text_of(figures), None if plan.fits else too_large(figures)


def _precision(config: TrainingConfig, machine: Machine, choices: Choices) -> Precision:
    if machine.speed is None:
        # A GPU that is not here: nothing to be asked.
        usual = "GPUs since 2020 compute in it; --precision says another"
        auto = config.precision == "auto"
        found: Any = "bf16" if auto else config.precision
        return choices.add("precision", found, usual if auto else "asked for")  # pyright: ignore
    chosen: Any = choose_precision(config.precision, machine.device, choices)
    return chosen


def _decided(
    config: TrainingConfig, machine: Machine, models: Models, choices: Choices
) -> tuple[TrainingConfig, PlannedData]:
    """The settings as a run decides them, and its data."""
    if isinstance(config, FinetuneConfig):
        task: Task = flamingo.open_data(config)
        base, note = _reader(config)
    else:
        task = flan_t5.open_data(config)  # pyright: ignore[reportArgumentType]
        base, note = _text_reader(config)
    splits = readable(config, task.splits, base)
    task.settle(splits, 0, base.answer_ids)
    model = models(config, measure_data(task, base))
    # As a run counts: the base alone, with what of it trains in full and a tower that is let go.
    parameters = planned_base(config, Choices(aloud=False)).model.num_parameters()
    config = decide(config, parameters, len(task.splits.train), choices)
    task.settle(splits, config.score_questions or 0, base.answer_ids)
    data = measure_data(task, base, seen_side(model), note)
    if config.batch_size == "auto":
        size = largest_batch(config, data, machine, models, choices)
        config = replace(config, batch_size=size)
    return config, data


def _reader(config: FinetuneConfig) -> tuple[Base, str]:
    """What counts the tokens of dialogues, without a model; what of it is an estimate."""
    name = config.lang_encoder or config.model
    preset = name in PRESETS and not Path(name).is_dir()
    reader = open_reader("embedded" if preset else name, config.max_tokens, config.prompt)
    how: Any = {"tokenizer": reader.tokenizer, "prompt": reader.prompt}
    base = _counting(
        partial(count_tokens, **how), partial(answer_ids, **how), reader.tokenizer, config
    )
    key = counting_key(**how)
    longest = config.max_tokens if preset else reader.longest
    return replace(base, longest_tokens=longest, tokens_key=key), ESTIMATE if preset else ""


def _text_reader(config: TrainingConfig) -> tuple[Base, str]:
    """What counts the tokens of pairs of texts, without a model; what of it is an estimate."""
    name = config.model
    preset = name in PRESETS and not Path(name).is_dir()
    ours = preset or name == "embedded"
    tokenizer = load_tokenizer(text_base_directory() if ours else name)

    def tokens(pairs: Sequence[Pair]) -> list[int]:
        return [pair_tokens(pair, tokenizer) for pair in pairs]

    def answers(pairs: Sequence[Pair]) -> list[list[int]]:
        return [ended_ids(pair.target, tokenizer) for pair in pairs]

    return _counting(tokens, answers, tokenizer, config), ESTIMATE if preset else ""


def _counting(tokens: Any, answers: Any, processor: Any, config: TrainingConfig) -> Base:
    """A base that counts, and does nothing else."""
    none: Any = None
    tuning = config.tuning_config
    rest = (tokens, answers, None, none)
    return Base(none, processor, config.model, tuning, none, none, *rest)

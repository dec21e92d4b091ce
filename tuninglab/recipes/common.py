"""The one driver of all recipes: from settings to a tuned model and its report."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object, set_seed

from tuninglab.adapters.base_format import count_parameters, tell_base_format
from tuninglab.adapters.lora import check_patterns, direct_modules, trainable_table, tune
from tuninglab.adapters.products import choose_products, use_onednn
from tuninglab.adapters.saving import adapter_state, adapter_writer, save_adapter
from tuninglab.adapters.shipped_base import check_shipped_base
from tuninglab.config import TrainingConfig
from tuninglab.console import Choices, is_main_process, say
from tuninglab.evaluation.metrics.metric import Metric
from tuninglab.evaluation.task import Task
from tuninglab.models.attention import choose_attention
from tuninglab.progress import working
from tuninglab.recipes.defaults import decide
from tuninglab.recipes.ending import print_scores, tell_planned, tell_training, tell_validation
from tuninglab.recipes.features import leave_out_tower, read_features
from tuninglab.recipes.guessing import answer_rows, as_decided, chance_loss
from tuninglab.recipes.loaders import open_loaders, readable
from tuninglab.recipes.measuring import (
    answers_of,
    best_figures,
    chosen_metrics,
    measure_of,
    val_score,
)
from tuninglab.recipes.recipe import Recipe, Setup, Tunable, keep_base
from tuninglab.recipes.resuming import FINGERPRINTS, check_end, fingerprints, settings_named
from tuninglab.recipes.row_orders import fill_of
from tuninglab.run_folder import RunFolder
from tuninglab.savers import add_savers, checkpoint_blocks
from tuninglab.training.checkpoint import newest_checkpoint
from tuninglab.training.hardware import DTYPES, make_accelerator, precision_of
from tuninglab.training.log import print_trainable
from tuninglab.training.loop import total_steps, train
from tuninglab.training.state import Progress

Config = TypeVar("Config", bound=TrainingConfig)


def run_recipe(
    recipe: Recipe, config: TrainingConfig, run: RunFolder, task: Task | None = None
) -> dict[str, Any]:
    """Tune by a recipe and write the run folder; returns the figures of report.json.

    Args:
        recipe: whose data and model.
        config: the settings of the run, from `open_run`.
        run: its folder.
        task: data and scores to use instead of those the settings name.

    Raises:
        UserError: the settings, the data or the machine do not allow it.
        WorkError: training failed, or the disk is full.
        KeyboardInterrupt: stopped by Ctrl-C, with the state saved.
    """
    try:
        # Mistakes in settings and data are told before a model is loaded.
        with settings_named(config, run):
            metrics = chosen_metrics(config)
            task = task or recipe.data(config)
        return _run(prepare(recipe, config, run, task, metrics), task)
    finally:
        run.release()


def _run(setup: Setup, task: Task) -> dict[str, Any]:
    """Scores, training, scores again, and the report."""
    run = setup.run
    evaluation: dict[str, Any] = {"before": val_score(setup), "after": {}, "controls": {}}
    if evaluation["before"]:
        evaluation["chance"] = {"val_loss": chance_loss(setup.model)}
    if evaluation["before"] and not run.resumed:
        run.append_metrics({"step": 0, "epoch": 0.0, **evaluation["before"]})
    answer = answers_of(setup)
    evaluation["before"] |= task.before(answer)

    progress = train_setup(setup, lambda: task.during(answer))
    # Before the scores, which may fail: what was learned is then on disk.
    state = adapter_state(setup.model)
    if is_main_process():
        save_adapter(setup.model, run.adapter, state, setup.base.prompt)

    if progress.kept_val_loss is not None:
        evaluation["after"] = {"val_loss": progress.kept_val_loss}
    for name, values in task.after(answer).items():
        evaluation[name] = evaluation.get(name, {}) | values
    if is_main_process() and (cards := task.write_cards(run.path)):
        run.write("answers.json", cards)
    report = report_of(setup, progress, evaluation)
    finish(report, setup)
    return report


def open_run(config: Config) -> tuple[Config, RunFolder]:
    """The settings and the folder of a run; a resumed run takes those it was started with.

    Raises:
        UserError: the folder may not be written, or there is nothing to go on from.
    """
    config = config.located()
    run = RunFolder.plan(config)
    if config.resume:
        config = run.resumed_config(config)
        run.hold()
        run.checkpoint = newest_checkpoint(run.checkpoints)
        check_shipped_base(run.checkpoint / "adapter")
    return config, run


def prepare(
    recipe: Recipe,
    config: TrainingConfig,
    run: RunFolder,
    task: Task,
    metrics: Sequence[Metric] = (),
) -> Setup:
    """Load the model, make the run folder, add what is tuned; says and saves every choice.

    The task gets the records that the model can read, and scores them by the metrics.

    Raises:
        UserError: the model, the data or the tuning do not fit each other or the machine.
    """
    choices = Choices()
    accelerator = make_accelerator(config.precision, choices, config.threads)
    # Kept as decided: on another machine `auto` would go on with other arithmetic.
    config = config.resolved(precision_of(accelerator))
    # Before loading: a new Perceiver and new gated blocks are drawn there.
    set_seed(config.seed)
    with working("loading the base model"), settings_named(config, run):
        base = recipe.load(config, run, choices)
    tell_base_format(base.model, choices, accelerator.device)
    config = decide(config, base.model.num_parameters(), len(task.splits.train), choices)
    splits = readable(config, task.splits, base)
    prints = fingerprints(run, splits, base.model)
    task.settle(splits, config.score_questions or 0, base.answer_ids)
    if metrics:
        task.measure_by(metrics, config.score_questions or 0)
    # They build on this module.
    from tuninglab.recipes.planned_training import plan_training, with_batch_size

    if config.batch_size == "auto":
        config = with_batch_size(config, task, base, accelerator, choices)
    # A mistake told before the folder is made leaves nothing in the way of the corrected command.
    check_patterns(base.model, base.tuning, recipe.scope)
    base.model.to(accelerator.device)
    trained = direct_modules(base.model, base.tuning, recipe.scope)
    pictured = [splits.train, splits.val, *task.shown()]
    base = read_features(config, base, trained, pictured, accelerator, choices)
    loaders = open_loaders(config, splits, base, accelerator, choices)
    answers = answer_rows(base, splits.train, config, recipe.scope, accelerator, choices)
    # With the decision in it: a resumed run trains the tensors that its checkpoints hold.
    config = as_decided(config, answers)
    products = config.products, base.model, DTYPES[config.precision], choices, gather_object
    config = replace(config, products=choose_products(*products))
    check_end(run, total_steps(config, loaders[0].batch_sampler))
    run.create(config)
    run.write(FINGERPRINTS, prints)
    name = base.name or keep_base(base, run)
    model = wrap(base, name, config, recipe.scope, choices, answers).to(accelerator.device)
    rows, parameters = trainable_table(model), count_parameters(model)
    print_trainable(rows, parameters)
    # Once a new base is saved.
    leave_out_tower(base.model, config)
    run.write("trainable.json", rows)
    run.write_environment(choices, torch.get_num_threads(), str(accelerator.device))
    plan = plan_training(config, task, base, answers, model, accelerator)
    return Setup(config, run, splits, model, base, name, *loaders, accelerator, plan)


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


def train_setup(setup: Setup, scores: Callable[[], dict[str, float]] = dict) -> Progress:
    """Train; see `training.loop.train`. `scores` stand beside the loss of each validation."""
    return train(
        setup.model,
        setup.train_loader,
        setup.config,
        setup.run,
        setup.accelerator,
        (lambda: val_score(setup) | scores()) if setup.val_loaders else None,
        measure_of(setup.config),
        sinks=[setup.run.append_metrics],
        collect=partial(adapter_writer, prompt=setup.base.prompt),
    )


def report_of(setup: Setup, progress: Progress, evaluation: dict[str, Any]) -> dict[str, Any]:
    """What report.json holds (design: the run folder)."""
    splits = setup.splits
    planned = total_steps(setup.config, setup.train_loader.batch_sampler)
    trained = (p.numel() for p in setup.model.parameters() if p.requires_grad)
    return {
        "run_name": setup.run.path.name,
        "task": splits.name,
        "data": {"train": len(splits.train), "val": len(splits.val), "skipped": splits.skipped},
        "base": setup.base_name,
        "precision": setup.config.precision,
        "quantization": setup.config.base_format,
        "train": {
            "steps": progress.step,
            "samples": progress.samples,
            "tokens": progress.tokens,
            "left_out": progress.left_out,
            "wall_s": round(progress.wall_s, 3),
            "first_loss": progress.first_loss,
            "last_loss": progress.last_loss,
            "peak_memory_mib": round(progress.peak_memory_mib, 1),
            "trainable_parameters": sum(trained),
            **fill_of(setup.train_loader),
            **best_figures(progress, setup.config, planned),
        },
        "plan": None if setup.plan is None else setup.plan.kept(),
        "evaluation": evaluation,
        "adapter_bytes": setup.run.adapter_bytes(),
    }


def finish(report: dict[str, Any], setup: Setup) -> None:
    """Write report.json and report.html, say where they are, and leave the process group."""
    setup.run.write("report.json", report)
    if is_main_process():
        from tuninglab.reporting.report import write_report

        with working("writing the report"):
            page, figures = write_report(setup.run.path), report["train"]
        tell_training(figures)
        if setup.plan is not None:
            tell_planned(setup.plan, figures)
        if setup.config.data and "exact_match" in report["evaluation"]["after"]:
            print_scores(report, "Exact match on held-out records", "question", "questions")
        tell_validation(report["evaluation"])
        say(f"Adapter: {setup.run.adapter} ({report['adapter_bytes']:,} bytes). Report: {page}")
    # The others wait here for the writing; a process that left the group early would break it.
    setup.accelerator.wait_for_everyone()
    setup.accelerator.end_training()

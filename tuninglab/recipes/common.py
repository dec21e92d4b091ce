"""The one driver of all recipes: from settings to a tuned model and its report."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object, set_seed

from tuninglab.adapters.base_format import count_parameters, tell_base_format
from tuninglab.adapters.lora import check_patterns, direct_modules, trainable_table
from tuninglab.adapters.products import choose_products
from tuninglab.adapters.saving import adapter_state, adapter_writer, save_adapter
from tuninglab.config import TrainingConfig
from tuninglab.console import Choices, is_main_process, say
from tuninglab.evaluation.metrics.metric import Metric
from tuninglab.evaluation.task import Task
from tuninglab.progress import working
from tuninglab.recipes.defaults import decide
from tuninglab.recipes.ending import (
    ended_before,
    print_scores,
    tell_planned,
    tell_training,
    tell_validation,
)
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
from tuninglab.recipes.planned_training import plan_training, with_batch_size
from tuninglab.recipes.recipe import Recipe, Setup, keep_base
from tuninglab.recipes.resuming import (
    FINGERPRINTS,
    check_end,
    fingerprints,
    settings_named,
    with_its_rows,
)
from tuninglab.recipes.row_orders import fill_of
from tuninglab.recipes.settling import gone_on_with, settled
from tuninglab.recipes.wrapping import wrap
from tuninglab.run_folder import RunFolder
from tuninglab.training.hardware import DTYPES, make_accelerator, precision_of
from tuninglab.training.launch import take_over_fsdp2
from tuninglab.training.log import print_trainable
from tuninglab.training.loop import Sink, total_steps, train
from tuninglab.training.parallel import lost_processes_told
from tuninglab.training.sharding import is_to_shard, loading_together, place, spread
from tuninglab.training.state import Progress
from tuninglab.training.trackers import Trackers, check_trackers, open_trackers

Config = TypeVar("Config", bound=TrainingConfig)


@lost_processes_told()
def run_recipe(
    recipe: Recipe,
    config: TrainingConfig,
    run: RunFolder,
    task: Task | None = None,
    more: Callable[[], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Tune by a recipe and write the run folder; returns the figures of report.json.

    Args:
        recipe: whose data and model.
        config: the settings of the run, from `open_run`.
        run: its folder; of one that has ended nothing is done again.
        task: data and scores to use instead of those the settings name.
        more: figures that the report holds besides, from the main process once all is scored.

    Raises:
        UserError: the settings, the data or the machine do not allow it.
        WorkError: training failed, or the disk is full.
        KeyboardInterrupt: stopped by Ctrl-C, with the state saved.
    """
    try:
        if run.ended:
            return ended_before(run.path)
        # Mistakes in settings and data are told before a model is loaded.
        check_trackers(config.track)
        with settings_named(config, run):
            metrics = chosen_metrics(config)
            task = task or recipe.data(config)
        setup = prepare(recipe, config, run, task, metrics)
        with open_trackers(setup.config, run) as tell:
            return _run(setup, task, tell, more)
    finally:
        run.release()


def _run(
    setup: Setup, task: Task, tell: Trackers, more: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Scores, training, scores again, and the report."""
    run = setup.run
    evaluation: dict[str, Any] = {"before": val_score(setup), "after": {}, "controls": {}}
    if evaluation["before"]:
        evaluation["chance"] = {"val_loss": chance_loss(setup.model)}
    if evaluation["before"] and not run.resumed:
        line = {"step": 0, "epoch": 0.0, **evaluation["before"]}
        run.append_metrics(line)
        tell(line)
    answer = answers_of(setup)
    evaluation["before"] |= task.before(answer)

    progress = train_setup(setup, lambda: task.during(answer), [tell])
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
        tell.show_answers(run.path, cards, progress.step)
    report = report_of(setup, progress, evaluation)
    if is_main_process():
        # Before the report is written: where there is one, the run has ended and lacks nothing.
        report |= more()
    finish(report, setup)
    return report


def open_run(config: Config) -> tuple[Config, RunFolder]:
    """The settings and the folder of a run; a resumed run takes those it was started with.

    Raises:
        UserError: the folder may not be written, or there is nothing to go on from.
    """
    config = config.located()
    if config.resume == "auto":
        return settled(config)
    return gone_on_with(config) if config.resume else (config, RunFolder.plan(config))


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
    config = take_over_fsdp2(config, choices := Choices())
    accelerator = make_accelerator(config.precision, choices, config.threads)
    sharded = is_to_shard(config, accelerator, choices)
    # Kept as decided: on another machine `auto` would go on with other arithmetic.
    config = config.resolved(precision_of(accelerator))
    # Before loading: a new Perceiver and new gated blocks are drawn there.
    set_seed(config.seed)
    shared = loading_together(accelerator, sharded)
    with working("loading the base model"), settings_named(config, run), shared:
        base = recipe.load(config, run, choices)
    tell_base_format(base.model, choices, accelerator.device)
    config = decide(config, base.model.num_parameters(), len(task.splits.train), choices)
    config = with_its_rows(config, run, accelerator.num_processes, choices)
    splits = readable(config, task.splits, base)
    prints = fingerprints(run, splits, base.model)
    task.settle(splits, config.score_questions or 0, base.answer_ids)
    if metrics:
        task.measure_by(metrics, config.score_questions or 0)
    if config.batch_size == "auto":
        config = with_batch_size(config, task, base, accelerator, choices)
    # A mistake told before the folder is made leaves nothing in the way of the corrected command.
    check_patterns(base.model, base.tuning, recipe.scope)
    place(base.model, accelerator.device, sharded)
    trained = direct_modules(base.model, base.tuning, recipe.scope)
    pictured = [splits.train, splits.val, *task.shown()]
    base = read_features(config, base, trained, pictured, accelerator, choices)
    loaders = open_loaders(config, splits, base, accelerator, choices)
    answers = answer_rows(base, splits.train, config, recipe.scope, accelerator, choices)
    # With the decision in it: a resumed run trains the tensors that its checkpoints hold.
    config = as_decided(config, answers)
    products = config.products, base.model, DTYPES[config.precision], choices, gather_object
    config = replace(config, products=choose_products(*products))
    further = check_end(run, total_steps(config, loaders[0].batch_sampler))
    run.create(config, further)
    run.write(FINGERPRINTS, prints)
    name = base.name or keep_base(base, run)
    model = wrap(base, name, config, recipe.scope, choices, answers)
    rows, parameters = trainable_table(model), count_parameters(model)
    print_trainable(rows, parameters)
    # Once a new base is saved.
    leave_out_tower(base.model, config)
    plan = plan_training(config, task, base, answers, model, accelerator)
    model = spread(model, accelerator.device, sharded)
    run.write("trainable.json", rows)
    run.write_environment(choices, torch.get_num_threads(), str(accelerator.device))
    return Setup(config, run, splits, model, base, name, *loaders, accelerator, plan)


def train_setup(
    setup: Setup, scores: Callable[[], dict[str, float]] = dict, sinks: Sequence[Sink] = ()
) -> Progress:
    """Train; see `training.loop.train`. `scores` stand beside the loss of each validation."""
    return train(
        setup.model,
        setup.train_loader,
        setup.config,
        setup.run,
        setup.accelerator,
        (lambda: val_score(setup) | scores()) if setup.val_loaders else None,
        measure_of(setup.config),
        sinks=[setup.run.append_metrics, *sinks],
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

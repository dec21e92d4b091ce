"""What the recipes have in common: from a loaded model and its data to a tuned one and a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from tuninglab.adapters.base_format import count_parameters
from tuninglab.adapters.lora import SCOPE, direct_modules, trainable_table, tune
from tuninglab.adapters.saving import save_adapter
from tuninglab.config import TrainingConfig
from tuninglab.config.tuning import LoraTuning
from tuninglab.console import Choices, is_main_process, say
from tuninglab.data.loading import make_loader
from tuninglab.data.sampler import StepSampler
from tuninglab.data.splits import Splits
from tuninglab.evaluation.task import Task
from tuninglab.run_folder import RunFolder
from tuninglab.savers import add_savers, checkpoint_blocks
from tuninglab.training.checkpoint import newest_checkpoint
from tuninglab.training.hardware import precision_of
from tuninglab.training.log import print_trainable
from tuninglab.training.loop import train, validation_loss
from tuninglab.training.state import Progress

Config = TypeVar("Config", bound=TrainingConfig)


@dataclass
class Setup:
    """What a run works with; ready to train once its model is wrapped."""

    model: Any
    processor: Any
    train_loader: DataLoader
    val_loader: DataLoader | None
    accelerator: Accelerator
    base: str
    choices: Choices
    trainable: list[dict[str, Any]] = field(default_factory=list)


def open_run(config: Config) -> tuple[Config, RunFolder]:
    """The settings and the folder of a run; a resumed run takes those it was started with.

    Raises:
        UserError: the folder may not be written, or there is nothing to go on from.
    """
    config = config.located()
    run = RunFolder.plan(config)
    if config.resume:
        config = run.resumed_config(config)
        newest_checkpoint(run.checkpoints)
    return config.resolved(), run


def make_loaders(
    config: TrainingConfig,
    splits: Splits,
    accelerator: Accelerator,
    dataset: Callable[[Sequence[Any]], Dataset],
    collator: Callable[[Any], Any],
) -> tuple[DataLoader, DataLoader | None]:
    """Build the loaders of training and validation samples (None if there are none).

    Args:
        config: settings of the run.
        splits: the samples.
        accelerator: says which rows this process takes.
        dataset: makes the rows of samples; it may leave some out.
        collator: makes a batch of rows.
    """

    def load(samples: Sequence[Any], accumulation: int, shuffle: bool) -> DataLoader:
        rows: Any = dataset(samples)
        sampler = StepSampler(
            len(rows),
            config.batch_size,
            accumulation,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            seed=config.seed,
            shuffle=shuffle,
        )
        return make_loader(rows, collator, sampler, config.workers)

    train_loader = load(splits.train, config.gradient_accumulation_steps, shuffle=True)
    return train_loader, load(splits.val, 1, shuffle=False) if splits.val else None


def wrap(
    setup: Setup, tuning: LoraTuning, config: TrainingConfig, run: RunFolder, scope: str = SCOPE
) -> Setup:
    """Add memory savers and what is tuned to the model; writes down what trains, and on what.

    Raises:
        UserError: the tuning does not fit the model.
    """
    setup.model.requires_grad_(False)
    # What trains in full is left alone: a saver may make no gradient for its weights.
    for name in direct_modules(setup.model, tuning, scope):
        setup.model.get_submodule(name).requires_grad_(True)
    # New tokens train as rows of a float table.
    wanted = [name for name in config.savers if name != "embedding" or not tuning.train_new_tokens]
    savers = add_savers(setup.model, wanted)
    why = "the base is int8" if config.base_format == "int8" else "--memory_savers"
    for name, what in savers.items():
        setup.choices.add(f"memory saver {name}", what, why)
    model: Any = tune(setup.model, tuning, setup.base, scope)
    setup.model = model.to(setup.accelerator.device)
    if config.checkpoint_interval:
        count = checkpoint_blocks(setup.model, config.checkpoint_interval)
        flag = "checkpoint_every" if config.checkpoint_every else "activation_checkpointing"
        setup.choices.add("activations recomputed", f"in {count} blocks", f"--{flag}")
    setup.trainable = trainable_table(setup.model)
    print_trainable(setup.trainable, count_parameters(setup.model))
    run.write("trainable.json", setup.trainable)
    run.write_environment(setup.choices, torch.get_num_threads(), str(setup.accelerator.device))
    return setup


def tune_and_report(
    config: TrainingConfig, run: RunFolder, setup: Setup, splits: Splits, task: Task | None
) -> dict[str, Any]:
    """Score, train, save the adapter, score again; returns and writes report.json.

    Raises:
        WorkError: training failed, or the disk is full.
        KeyboardInterrupt: stopped by Ctrl-C, with the state saved.
    """
    evaluation: dict[str, Any] = {"before": val_score(setup), "after": {}, "controls": {}}
    if setup.val_loader and not run.resumed:
        run.append_metrics({"step": 0, "epoch": 0.0, **evaluation["before"]})
    if task and is_main_process():
        with setup.accelerator.autocast():
            evaluation["before"] |= task.before(setup.model.eval(), setup.processor)
    setup.accelerator.wait_for_everyone()

    progress = train(
        setup.model, setup.train_loader, config, run, setup.accelerator, setup.val_loader
    )
    if is_main_process():
        save_adapter(setup.model, run.adapter)

    if progress.val_loss is not None:
        evaluation["after"] = {"val_loss": progress.val_loss}
    if task and is_main_process():
        score_tuned(task, setup, run, evaluation)
    setup.accelerator.wait_for_everyone()
    report = {
        "run_name": run.path.name,
        "task": splits.name,
        "data": {"train": len(splits.train), "val": len(splits.val), "skipped": splits.skipped},
        "base": setup.base,
        "precision": precision_of(setup.accelerator),
        "quantization": config.base_format,
        "train": train_figures(progress, setup),
        "evaluation": evaluation,
        "adapter_bytes": run.adapter_bytes(),
    }
    finish(report, run, setup.accelerator)
    return report


def val_score(setup: Setup) -> dict[str, float]:
    """`val_loss` of the model as it is now; empty without validation data."""
    if setup.val_loader is None:
        return {}
    return {"val_loss": validation_loss(setup.model, setup.val_loader, setup.accelerator)}


def score_tuned(task: Task, setup: Setup, run: RunFolder, evaluation: dict[str, Any]) -> None:
    """Add the task's scores of the tuned model to `evaluation`, and its cards to the run."""
    with setup.accelerator.autocast():
        scores = task.after(setup.model.eval(), setup.processor)
    for name, values in scores.items():
        evaluation[name] = evaluation.get(name, {}) | values
    run.write("answers.json", task.write_cards(run.path))


def train_figures(progress: Progress, setup: Setup) -> dict[str, Any]:
    """The `train` part of report.json."""
    return {
        "steps": progress.step,
        "samples": progress.samples,
        "tokens": progress.tokens,
        "wall_s": round(progress.wall_s, 3),
        "first_loss": progress.first_loss,
        "last_loss": progress.last_loss,
        "peak_memory_mib": round(progress.peak_memory_mib, 1),
        "trainable_parameters": sum(row["parameters"] for row in setup.trainable),
    }


def finish(report: dict[str, Any], run: RunFolder, accelerator: Accelerator) -> None:
    """Write report.json and report.html, say where they are, and leave the process group."""
    run.write("report.json", report)
    if is_main_process():
        from tuninglab.reporting.report import write_report

        page = write_report(run.path)
        figures = report["train"]
        say(
            f"Loss {figures['first_loss']:.4f} in the first step, {figures['last_loss']:.4f} in "
            f"the last of {figures['steps']}; {figures['wall_s']:.0f} s."
        )
        scores = report["evaluation"]
        if "val_loss" in scores["before"] and "val_loss" in scores["after"]:
            before, after = scores["before"]["val_loss"], scores["after"]["val_loss"]
            say(f"Validation loss {before:.4f} before, {after:.4f} after.")
        say(f"Adapter: {run.adapter} ({report['adapter_bytes']:,} bytes). Report: {page}")
    accelerator.end_training()

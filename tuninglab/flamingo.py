"""The main recipe: tune a Flamingo. `tuninglab finetune`, `flamingo.py` and `fine_tuning.py`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # `cd tuninglab && python flamingo.py` puts this folder first on the path; the package must
    # come from its parent.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from tuninglab.cli import finetune_main

    sys.exit(finetune_main())

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from tuninglab.adapters.lora import check_patterns, train_fresh_bridge, trainable_table, tune
from tuninglab.adapters.saving import save_adapter
from tuninglab.checkpoint import newest_checkpoint
from tuninglab.config import FinetuneConfig
from tuninglab.console import Choices, is_main_process, say
from tuninglab.data.batches import Collator, SampleDataset
from tuninglab.data.loading import make_loader
from tuninglab.data.sample import Sample
from tuninglab.data.sampler import StepSampler
from tuninglab.data.splits import Splits, fitting_samples, read_splits
from tuninglab.disk import whole_folder
from tuninglab.hardware import DTYPES, make_accelerator, peak_memory_mib, precision_of
from tuninglab.models.build import flamingo_from_parts, load_flamingo
from tuninglab.run_folder import RunFolder
from tuninglab.train import train, validation_loss
from tuninglab.training_log import Progress, print_trainable


class Task(Protocol):
    """Data with scores of its own besides the loss; the embedded one is such."""

    splits: Splits

    def before(self, model: Any, processor: Any) -> dict[str, Any]:
        """Score the untuned model, for `evaluation.before` of the report."""
        ...

    def after(self, model: Any, processor: Any) -> dict[str, dict[str, Any]]:
        """Score the tuned model, as entries of `evaluation`: `after`, `controls`, `prior`."""
        ...

    def write_cards(self, run_dir: Path) -> list[dict[str, Any]]:
        """Write pictures into the run folder; returns their questions and answers."""
        ...


@dataclass
class Setup:
    """What a run works with, ready to train."""

    model: Any
    processor: Any
    train_loader: DataLoader
    val_loader: DataLoader | None
    accelerator: Accelerator
    base: str
    trainable: list[dict[str, Any]]


def finetune(config: FinetuneConfig, task: Task | None = None) -> dict[str, Any]:
    """Tune a Flamingo and write its run folder; returns the figures of report.json.

    Args:
        config: the settings; a resumed run takes those it was started with.
        task: data and scores to use instead of those the settings name.

    Raises:
        UserError: the settings, the data or the machine do not allow it.
        WorkError: training failed, or the disk is full.
        KeyboardInterrupt: stopped by Ctrl-C, with the state saved.
    """
    config = config.located()
    run = RunFolder.plan(config)
    if config.resume:
        config = run.resumed_config(config)
        newest_checkpoint(run.checkpoints)
    # Mistakes up to here, and in the data, are told before anything heavy is loaded.
    if task is None and config.data is None:
        from tuninglab.embedded.scoring import EmbeddedTask

        say("No --data is given: tuning on the embedded questions about generated pictures.")
        task = EmbeddedTask(config.embedded_pictures)
    splits = task.splits if task else open_data(config)
    setup = prepare(config, splits, run)
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
        "train": train_figures(progress, setup),
        "evaluation": evaluation,
        "adapter_bytes": run.adapter_bytes(),
    }
    finish(report, run, setup.accelerator)
    return report


def open_data(config: FinetuneConfig) -> Splits:
    """Read and check the samples that the settings name.

    Raises:
        UserError: a file or record is wrong; all records are checked.
    """
    assert config.data is not None
    return read_splits(
        config.data,
        config.image_root,
        config.val_data,
        config.val_split,
        config.seed,
        config.skip_bad_records,
    )


def prepare(config: FinetuneConfig, splits: Splits, run: RunFolder) -> Setup:
    """Load the model, make the run folder, add what is tuned; says and saves every choice.

    Raises:
        UserError: the model, the data or the tuning do not fit each other or the machine.
    """
    choices = Choices()
    accelerator = make_accelerator(config.precision, choices)
    set_seed(config.seed)
    model, processor = load_model(config, run, DTYPES[precision_of(accelerator)])
    train_loader, val_loader = make_loaders(config, splits, model, processor, accelerator)
    tuning = config.tuning_config
    if config.lang_encoder:
        tuning = train_fresh_bridge(tuning, choices)
    # A mistake told before the folder is made leaves nothing in the way of the corrected command.
    check_patterns(model, tuning)
    run.create(config)
    base = config.model
    if config.lang_encoder:
        base = str(run.path / "base")
        if is_main_process() and not run.resumed:
            with whole_folder(run.path / "base") as beside:
                model.save_pretrained(beside)
                processor.save_pretrained(beside)
    model = tune(model, tuning, base).to(accelerator.device)
    if config.activation_checkpointing:
        flamingo: Any = model.get_base_model()
        flamingo.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    table = trainable_table(model)
    print_trainable(table, sum(p.numel() for p in model.parameters()))
    run.write("trainable.json", table)
    run.write_environment(choices, torch.get_num_threads(), str(accelerator.device))
    return Setup(model, processor, train_loader, val_loader, accelerator, base, table)


def load_model(config: FinetuneConfig, run: RunFolder, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load the base model and its processor as the settings name them, frozen weights in `dtype`.

    Raises:
        UserError: there is no such model.
    """
    if config.lang_encoder and config.vision_encoder:
        if run.resumed:
            return load_flamingo(run.path / "base", dtype=dtype)
        every = config.cross_attn_every_n_layers
        return flamingo_from_parts(config.lang_encoder, config.vision_encoder, every, dtype=dtype)
    if config.model == "embedded":
        from tuninglab.embedded import base_directory

        say("Base model: the small pre-trained Flamingo that ships with tuninglab (embedded).")
        return load_flamingo(base_directory(), dtype=dtype)
    return load_flamingo(config.model, dtype=dtype)


def make_loaders(
    config: FinetuneConfig, splits: Splits, model: Any, processor: Any, accelerator: Accelerator
) -> tuple[DataLoader, DataLoader | None]:
    """Build the loaders of training and validation samples (None if there are none).

    Raises:
        DataError: samples are longer than the language model can read, or than `max_tokens`.
    """
    readable = getattr(model.config.text_config, "max_position_embeddings", None)
    longest = min((n for n in (config.max_tokens, readable) if n), default=None)
    image_size = model.config.vision_config.image_size
    collator = Collator(processor.tokenizer.pad_token_id, image_size)

    def load(samples: Sequence[Sample], accumulation: int, shuffle: bool) -> DataLoader:
        # Ours are short; reading them all would draw every picture.
        if longest and config.data is not None:
            skip = config.skip_bad_records
            samples = fitting_samples(samples, processor.tokenizer, longest, skip)
        sampler = StepSampler(
            len(samples),
            config.batch_size,
            accumulation,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            seed=config.seed,
            shuffle=shuffle,
        )
        dataset = SampleDataset(samples, processor)
        return make_loader(dataset, collator, sampler, config.workers)

    train_loader = load(splits.train, config.gradient_accumulation_steps, shuffle=True)
    return train_loader, load(splits.val, 1, shuffle=False) if splits.val else None


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
        "peak_memory_mib": round(peak_memory_mib(setup.accelerator.device), 1),
        "trainable_parameters": sum(row["parameters"] for row in setup.trainable),
    }


def finish(report: dict[str, Any], run: RunFolder, accelerator: Accelerator) -> None:
    """Write report.json and report.html, say where they are, and leave the process group."""
    run.write("report.json", report)
    if is_main_process():
        from tuninglab.report import write_report

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

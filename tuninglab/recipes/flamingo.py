"""The main recipe: tune a Flamingo. `tuninglab finetune`, `flamingo.py` and `fine_tuning.py`."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from tuninglab.adapters.base_format import (
    left_in_float,
    quantization_config,
    tell_quantisation,
)
from tuninglab.adapters.lora import check_patterns, train_fresh_bridge
from tuninglab.config import FinetuneConfig
from tuninglab.console import Choices, is_main_process, say
from tuninglab.data.batches import Collator, SampleDataset
from tuninglab.data.sample import Sample
from tuninglab.data.splits import Splits, fit, read_splits
from tuninglab.disk import whole_folder
from tuninglab.evaluation.task import Task
from tuninglab.models.build import flamingo_from_parts, load_flamingo
from tuninglab.recipes import common as recipe
from tuninglab.recipes.common import Setup
from tuninglab.run_folder import RunFolder
from tuninglab.training.hardware import DTYPES, make_accelerator, precision_of


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
    config, run = recipe.open_run(config)
    # Mistakes up to here, and in the data, are told before anything heavy is loaded.
    if task is None and config.data is None:
        from tuninglab.embedded.scoring import EmbeddedTask

        say("No --data is given: tuning on the embedded questions about generated pictures.")
        task = EmbeddedTask(config.embedded_pictures)
    splits = task.splits if task else open_data(config)
    setup = prepare(config, splits, run)
    return recipe.tune_and_report(config, run, setup, setup.splits, task)


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
    tell_quantisation(model, choices, accelerator.device)
    splits = fitting(config, splits, model, processor.tokenizer)
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
    setup = Setup(model, processor, train_loader, val_loader, accelerator, base, choices, splits)
    return recipe.wrap(setup, tuning, config, run)


def fitting(config: FinetuneConfig, splits: Splits, model: Any, tokenizer: Any) -> Splits:
    """The splits without samples that are too long, where those may be left out.

    Raises:
        DataError: samples are longer than the language model can read, or than `max_tokens`.
    """
    readable = getattr(model.config.text_config, "max_position_embeddings", None)
    longest = min((n for n in (config.max_tokens, readable) if n), default=None)
    # Ours are short; reading them all would draw every picture.
    if longest is None or config.data is None:
        return splits
    return fit(splits, tokenizer, longest, config.skip_bad_records)


def load_model(config: FinetuneConfig, run: RunFolder, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load the base model and its processor as the settings name them.

    Frozen weights come in `dtype`, or quantised as they are read.

    Raises:
        UserError: there is no such model, or bitsandbytes is asked for and missing.
    """
    skip = left_in_float(config.tuning_config, fresh_bridge=config.lang_encoder is not None)
    # New tokens train as rows of float tables, and make the tables of plain language models grow.
    head = not (config.tuning_config.train_new_tokens or config.lang_encoder)
    quantization = quantization_config(config.base_format, dtype, skip, head)
    if config.lang_encoder and config.vision_encoder:
        if run.resumed:
            return load_flamingo(run.path / "base", dtype, quantization)
        parts = (config.lang_encoder, config.vision_encoder, config.cross_attn_every_n_layers)
        return flamingo_from_parts(*parts, dtype, quantization)
    if config.model == "embedded":
        from tuninglab.embedded import base_directory

        say("Base model: the small pre-trained Flamingo that ships with tuninglab (embedded).")
        return load_flamingo(base_directory(), dtype, quantization)
    return load_flamingo(config.model, dtype, quantization)


def make_loaders(
    config: FinetuneConfig, splits: Splits, model: Any, processor: Any, accelerator: Accelerator
) -> tuple[DataLoader, DataLoader | None]:
    """Build the loaders of training and validation samples (None if there are none)."""
    collator = Collator(processor.tokenizer.pad_token_id, model.config.vision_config.image_size)

    def rows(samples: Sequence[Sample]) -> SampleDataset:
        return SampleDataset(samples, processor)

    return recipe.make_loaders(config, splits, accelerator, rows, collator)

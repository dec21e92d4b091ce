"""A model as it is scored: in the arithmetic that finetune scores in, on all processes."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from tuninglab.adapters.base_format import tell_base_format
from tuninglab.adapters.kept_settings import adapter_prompt
from tuninglab.adapters.products import choose_products, use_onednn
from tuninglab.adapters.saving import as_trained, load_adapter
from tuninglab.config import EvaluateConfig, FinetuneConfig
from tuninglab.config.prompts import kept_prompt
from tuninglab.config.yaml_file import read_config
from tuninglab.console import Choices
from tuninglab.evaluation.answers import usual_batch_size
from tuninglab.models.decoding import decoding_of
from tuninglab.progress import working
from tuninglab.recipes.flamingo import load_model
from tuninglab.recipes.wrapping import add_kernels
from tuninglab.run_folder import RunFolder
from tuninglab.run_folder.named_model import NamedModel, base_told, shipped
from tuninglab.training.hardware import DTYPES, make_accelerator, precision_of

HEAD = 2**20


@dataclass
class ScoredModel:
    """A model that is ready to answer.

    Args:
        model: with its adapter, frozen, in evaluation mode.
        processor: asks by the prompt of the adapter, or the one that was given.
        accelerator: knows device, processes and the format of numbers.
        batch_size: questions answered together.
    """

    model: Any
    processor: Any
    accelerator: Accelerator
    batch_size: int


def open_scored(
    named: NamedModel, config: EvaluateConfig, choices: Choices, prompt: str | None = None
) -> ScoredModel:
    """Load a model: that of a run in the precision and base format of the run.

    Args:
        named: the model.
        config: how it is asked.
        choices: where each choice is said and kept.
        prompt: that it is asked by; None: its own.

    Raises:
        UserError: there is no such model, its base is gone, or the machine does not allow it.
    """
    settings = settings_of(named, config)
    why = "asked for" if config.precision != "auto" else f"as {named.run} was tuned"
    accelerator = make_accelerator(settings.precision, choices, config.threads, why)
    settings = replace(settings, precision=precision_of(accelerator))
    run = RunFolder(named.run or Path(), resumed=named.run is not None)
    with working("loading the model"), base_told(named):
        model, processor = load_model(settings, run)
    tell_base_format(model, choices, accelerator.device)
    model.to(accelerator.device).requires_grad_(False)
    dtype = DTYPES[settings.precision]
    products = choose_products(settings.products, model, dtype, choices, gather_object)
    # As the run had them when it scored itself: what they compute differs in last bits.
    tuning = settings.tuning_config
    rows = tuning.train_new_tokens or tuning.train_answer_tokens == "true"
    add_kernels(model, settings, rows, choices)
    if named.adapter is not None:
        as_trained(model, named.adapter)
        model = load_adapter(model, named.adapter)
    if prompt is not None:
        processor.use_prompt(prompt)
    if products == "onednn":
        use_onednn(model)
    if accelerator.device.type == "cpu":
        choices.add("decoding", *decoding_of(model.lang_encoder))
    usual = usual_batch_size(model)
    why = f"for a model of {model.num_parameters() / 1e6:,.1f} M parameters"
    if config.batch_size is None:
        choices.add("batch size", str(usual), why)
    return ScoredModel(model.eval(), processor, accelerator, config.batch_size or usual)


def prompt_of(named: NamedModel, config: EvaluateConfig) -> str | None:
    """The prompt that was given, else that of the adapter; None: that of the base.

    Raises:
        UserError: it is no prompt, or the adapter is damaged.
    """
    if config.prompt is not None:
        return kept_prompt(config.prompt)
    return None if named.adapter is None else adapter_prompt(named.adapter)


def settings_of(named: NamedModel, config: EvaluateConfig) -> FinetuneConfig:
    """The settings that a run loaded its base with; of other models those that finetune would."""
    if named.run is None:
        return FinetuneConfig(model=named.base, precision=config.precision)
    settings = read_config(named.run / "config.yaml", FinetuneConfig)
    if config.precision != "auto":
        return replace(settings, precision=config.precision)
    # Tuned on a GPU: a CPU has no such arithmetic.
    here = settings.precision != "fp16" or torch.accelerator.is_available()
    return settings if here else replace(settings, precision="auto")


def model_stamp(named: NamedModel) -> dict[str, Any]:
    """What tells a model from others without reading all its weights.

    Of a base the names and sizes of its files with how they begin and end, of an adapter, which is
    small, the content: so a copied run is the same. A hub id stands for itself.
    """
    base = Path(shipped(named.base))
    files = sorted(path for path in base.glob("*") if path.is_file()) if base.is_dir() else []
    stamps = [[path.name, path.stat().st_size, _head(path)] for path in files]
    adapter = sorted(named.adapter.glob("*")) if named.adapter else []
    digests = [[path.name, _digest(path)] for path in adapter if path.is_file()]
    return {"base": stamps or named.base, "adapter": digests}


def _head(path: Path) -> str:
    # Weights of the same shapes have the same size, and their names come first in the file.
    with path.open("rb") as file:
        first = file.read(HEAD)
        file.seek(-min(HEAD, path.stat().st_size), 2)
        return hashlib.sha256(first + file.read(HEAD)).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The tuned model of a run without its weights: what training would find, on the meta device."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer

from tuninglab.adapters.base_format import base_format_of, left_in_float, quantization_config
from tuninglab.adapters.lora import SCOPE, check_patterns, train_fresh_bridge
from tuninglab.config import FinetuneConfig, TrainingConfig
from tuninglab.config.tuning import LoraTuning
from tuninglab.console import Choices
from tuninglab.data.special_tokens import EOC_TOKEN, IMAGE_TOKEN
from tuninglab.embedded import base_directory, text_base_directory
from tuninglab.errors import UserError
from tuninglab.inspection.meta_model import named_config
from tuninglab.inspection.presets import model_on_meta
from tuninglab.models.build import add_flamingo_tokens
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.parts import load_tokenizer, read_lang_config
from tuninglab.models.quantised import quantised
from tuninglab.models.text_to_text import WideLinear
from tuninglab.models.vision import read_vision_config
from tuninglab.recipes.features import leave_out_tower
from tuninglab.recipes.recipe import WHOLE_MODEL
from tuninglab.recipes.wrapping import wrap
from tuninglab.training.hardware import DTYPES


class PlannedBase(NamedTuple):
    """A base without weights, and what of it is tuned."""

    model: Any
    tuning: LoraTuning


def planned_model(
    config: TrainingConfig, choices: Choices | None = None, answers: Sequence[int] = ()
) -> Any:
    """PEFT's model on the meta device, as `recipes.common.wrap` leaves a loaded one.

    Args:
        config: settings of a run; its precision is decided, its products are taken for torch's own
            unless they are onednn.
        choices: where is said what `wrap` says; None: nowhere.
        answers: tokens whose rows train.

    Raises:
        UserError: there is no such model, or the tuning does not fit it.
    """
    said = Choices() if choices is None else choices
    base = planned_base(config, said)
    scope = SCOPE if isinstance(config, FinetuneConfig) else WHOLE_MODEL
    check_patterns(base.model, base.tuning, scope)
    # What is added is as empty as what it is added to.
    with torch.device("meta"):
        tuned = wrap(base, config.model, config, scope, said, answers)
    leave_out_tower(base.model, config)
    return tuned


def planned_base(config: TrainingConfig, choices: Choices) -> PlannedBase:
    """The base of a run on the meta device, its frozen weights in the format that is asked for.

    Raises:
        UserError: there is no such model, or bitsandbytes is asked for.
    """
    if config.base_format.startswith("bnb"):
        raise UserError(
            f"--quantization {config.base_format} cannot be planned: bitsandbytes calculates with "
            "numbers alone, not with shapes. Plan --quantization int8: its weights take as much as "
            "bnb-int8's and about twice what bnb-nf4's do."
        )
    dtype = DTYPES[config.precision]
    tuning: Any = config.tuning_config
    if isinstance(config, FinetuneConfig) and config.lang_encoder is not None:
        tuning = train_fresh_bridge(tuning, choices)
    model_config, quantization = _read(config)
    options = quantised(quantization, model_config, config.model)
    model: Any = model_on_meta(model_config, dtype)
    saved = getattr(model_config, "quantization_config", None)
    asked = options.get("quantization_config", saved)
    if asked is not None:
        _quantise(model, asked)
    if hasattr(model, "set_dropout"):
        model.set_dropout(0.0)
    # As the loader of a T5 does: its `wo` leaves the range of fp16.
    for module in model.modules() if dtype == torch.float16 else ():
        wo = getattr(module, "wo", None)
        if type(wo) is nn.Linear:
            wo.float().__class__ = WideLinear
    return PlannedBase(model.eval(), tuning)


def changes_as_read(config: TrainingConfig) -> bool:
    """Whether frozen weights become others as they are read: rounded, or quantised.

    Args:
        config: settings of a run; its precision is decided.

    Raises:
        UserError: there is no such model.
    """
    model_config, quantization = _read(config)
    if quantised(quantization, model_config, config.model):
        return True
    # A Flamingo of parts was never saved: its language model was.
    saved = model_config.dtype or model_config.get_text_config(decoder=True).dtype
    return saved != DTYPES[config.precision]


def _read(config: TrainingConfig) -> tuple[PreTrainedConfig, Any]:
    """The configuration of a base, and how its frozen weights shall be quantised; None: not."""
    if isinstance(config, FinetuneConfig):
        return _flamingo_config(config), base_format_of(config)
    in_float = left_in_float(config.tuning_config, fresh_bridge=False)
    quantization = quantization_config(config.base_format, DTYPES[config.precision], in_float)
    return _text_config(config.model), quantization


def _flamingo_config(config: FinetuneConfig) -> PreTrainedConfig:
    if config.lang_encoder is None or config.vision_encoder is None:
        if config.model == "embedded":
            return AutoConfig.from_pretrained(base_directory(), local_files_only=True)
        return named_config(config.model)
    text: Any = read_lang_config(config.lang_encoder)
    tokenizer = load_tokenizer(config.lang_encoder)
    add_flamingo_tokens(tokenizer)
    eoc, image = tokenizer.convert_tokens_to_ids([EOC_TOKEN, IMAGE_TOKEN])
    inner = text.get_text_config(decoder=True)
    # Tables padded beyond the tokenizer keep their size, as `flamingo_from_parts` leaves them.
    inner.vocab_size = max(inner.vocab_size, len(tokenizer))
    return FlamingoConfig(
        text_config=text,
        vision_config=read_vision_config(config.vision_encoder),
        cross_attn_every_n_layers=config.cross_attn_every_n_layers,
        eoc_token_id=eoc,
        image_token_id=image,
    )


def _text_config(name: str) -> PreTrainedConfig:
    if name == "embedded":
        return AutoConfig.from_pretrained(text_base_directory(), local_files_only=True)
    return named_config(name)


def _quantise(model: Any, quantization: Any) -> None:
    """Put quantised layers in the place of others, as a loader does before it reads weights."""
    quantiser: Any = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
    quantiser.preprocess_model(model, dtype=model.dtype)
    quantiser.postprocess_model(model)
    model.hf_quantizer = quantiser
    model.requires_grad_(False)

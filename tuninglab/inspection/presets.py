"""Published models by name and models of a configuration, without weights: on the meta device."""

from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
)

from tuninglab.console import say
from tuninglab.embedded import base_directory
from tuninglab.models.configuration import CLIP_VIT_L_14, LLAMA_7B
from tuninglab.models.text_to_text import FLAN_T5_SMALL, TextToText

# Number formats are those that the language models were published in. Vocabularies have the three
# tokens of OpenFlamingo added: 32000 + 3 of LLaMA's tokenizer, 50277 + 3 of GPT-NeoX's. The padded
# tables of MPT and RedPajama shrink to that (OpenFlamingo 2.0.1, factory.py).
_LLAMA_7B = {"model_type": "llama", **LLAMA_7B, "dtype": "float16"}
_MPT = {"model_type": "mpt", "vocab_size": 50280}
_MPT_7B = {**_MPT, "d_model": 4096, "n_layers": 32, "n_heads": 32, "dtype": "bfloat16"}
# Sizes of mosaicml/mpt-1b-redpajama-200b as its model card has them.
_MPT_1B = {**_MPT, "d_model": 2048, "n_layers": 24, "n_heads": 16, "dtype": "float32"}
_REDPAJAMA_3B = {
    "model_type": "gpt_neox",
    "vocab_size": 50280,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    # Read by transformers from `rotary_pct` too; RedPajama rotates whole heads.
    "rotary_pct": 1.0,
    "use_parallel_residual": False,
    "tie_word_embeddings": False,
    "dtype": "float16",
}


def _flamingo(text: dict[str, Any], interval: int, **options: Any) -> dict[str, Any]:
    # <|endofchunk|>, <image> and <PAD> are the last three rows, in this order.
    return {
        "model_type": "flamingo",
        "text_config": text,
        "vision_config": {"model_type": "clip_vision_model", **CLIP_VIT_L_14},
        "cross_attn_every_n_layers": interval,
        "eoc_token_id": text["vocab_size"] - 3,
        "image_token_id": text["vocab_size"] - 2,
        "dtype": text["dtype"],
        **options,
    }


# What AutoConfig.for_model takes, by name (README of OpenFlamingo 2.0.1; the source document).
PRESETS: dict[str, dict[str, Any]] = {
    # Released with v1 of OpenFlamingo, whose text looked ahead.
    "openflamingo-9b": _flamingo(_LLAMA_7B, 4, media_mode="next-v1"),
    "openflamingo-9b-vitl-mpt7b": _flamingo(_MPT_7B, 4),
    "openflamingo-4b-vitl-rpj3b": _flamingo(_REDPAJAMA_3B, 2),
    "openflamingo-3b-vitl-mpt1b": _flamingo(_MPT_1B, 1),
    "llama-7b": _LLAMA_7B,
    "flan-t5-small": {"model_type": "t5", **FLAN_T5_SMALL, "dtype": "float32"},
}
# The shipped base has its configuration on disk.
PRESET_NAMES = (*PRESETS, "embedded")

T5 = "T5ForConditionalGeneration"
MOSAIC_GPT = (
    "openflamingo-3b-vitl-mpt1b: its language model, MosaicGPT 1B, needs code that transformers "
    "does not have. Shown with the MPT blocks of transformers at the same sizes, which have other "
    "names and no norms of queries and keys; what OpenFlamingo trains counts the same. The real "
    "one: tuninglab convert with --lang_encoder (its directory) and --trust_remote_code."
)


def build_preset(name: str) -> PreTrainedModel:
    """A preset on the meta device: modules, shapes and number formats, no memory.

    Raises:
        KeyError: the name is none of `PRESET_NAMES`.
    """
    if name == "openflamingo-3b-vitl-mpt1b":
        say(MOSAIC_GPT)
    if name == "embedded":
        return model_on_meta(AutoConfig.from_pretrained(base_directory(), local_files_only=True))
    return model_on_meta(AutoConfig.for_model(**PRESETS[name]))


def model_on_meta(
    model_config: PreTrainedConfig, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The model that a configuration describes, on the meta device.

    Args:
        model_config: of any model of transformers.
        dtype: of the weights; None: the format that the configuration names.

    Raises:
        ValueError: transformers has no model for this configuration.
    """
    with torch.device("meta"):
        named = {} if dtype is None else {"dtype": dtype}
        return _model_class(model_config)(model_config, **named)


def _model_class(model_config: PreTrainedConfig) -> Any:
    """The constructor, from a configuration, of the class that was saved, or else the usual one."""
    # Whatever its configuration says, transformers 5.23 ties the head of every T5: flan-t5-small
    # would have 60.5 M parameters, not 77 M.
    if type(model_config) is T5Config and (model_config.architectures or [T5]) == [T5]:
        return TextToText._from_config
    for name in model_config.architectures or ():
        saved = getattr(transformers, name, None)
        if saved is not None:
            # Unlike the class itself, this heeds the number format of the configuration.
            return saved._from_config
    usual = (AutoModelForImageTextToText, AutoModelForSeq2SeqLM, AutoModelForCausalLM)
    return next(
        (auto.from_config for auto in usual if type(model_config) in auto._model_mapping),
        AutoModel.from_config,
    )

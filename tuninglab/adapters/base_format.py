"""How the frozen base is held: `--quantization` as a configuration that loaders take.

`int8` is ours: multiplied as int8, both ways (`tuninglab.int8`). `bnb-int8` and `bnb-nf4`
are bitsandbytes' through transformers: smaller, but turned into floats again at every use.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import LoraTuning
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.int8.quantiser import METHOD, Int8Config, int8_layers
from tuninglab.int8.ways import way_of
from tuninglab.kernels import gpu
from tuninglab.models.named_parts import GATED_BLOCK, SCOPE
from tuninglab.models.parts import DTYPES

TOWERS = ("vision_encoder", "perceiver")
# What the output layer is called (embed_out by GPT-NeoX): bitsandbytes leaves it out by itself
# only where nothing else is named.
HEADS = ("lm_head", "embed_out")
# Its input has the dimensions (B, M, L, D): in evaluation, bitsandbytes 0.50's int8 takes three.
KEYS_AND_VALUES = r".*\.to_kv"


def quantization_config(
    name: str, dtype: torch.dtype, skip: Sequence[str] = (), head: bool = True
) -> Any:
    """The configuration of transformers for a name of `--quantization`; None for `none`.

    Args:
        name: int8, bnb-int8, bnb-nf4 or none.
        dtype: of the computation; bitsandbytes turns its 4 bits into it.
        skip: modules to leave out, as in `Int8Config`.
        head: also the output layer, where it is not tied to the token table; int8 only.

    Raises:
        UserError: bitsandbytes is asked for and missing.
    """
    if name == "none":
        return None
    if name == "int8":
        return Int8Config(skip, head)
    _check_bitsandbytes(name)
    left_out = [*skip, *HEADS]
    if name == "bnb-int8":
        left_out.append(KEYS_AND_VALUES)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=left_out)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=left_out,
    )


def left_in_float(tuning: LoraTuning, fresh_bridge: bool) -> list[str]:
    """What of a model is never quantised: a Flamingo's towers, and whatever trains in full.

    Args:
        tuning: what trains.
        fresh_bridge: the gated blocks are new, and so trained in full whatever `tuning` says.
    """
    full, ends = tuning.full_parts, list(tuning.modules_to_save)
    if "cross_attention" in full or fresh_bridge:
        ends.insert(0, GATED_BLOCK)
    ends += HEADS if "head" in full else ()
    inside = [rf"(?:.*\.)?{re.escape(end)}" for end in ends]
    # No model is at hand here: of the language model, all but the gated blocks.
    inside += [rf"{SCOPE}\.(?!.*{GATED_BLOCK}).*"] if "lm" in full else []
    return [*TOWERS, *inside]


def tell_base_format(model: Any, choices: Choices, device: torch.device) -> None:
    """Say how a loaded model holds its linear layers and multiplies on `device`, unless as floats.

    Raises:
        UserError: quantisation was asked for, and there is no layer that it could be applied to.
    """
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return
    part = getattr(model, SCOPE, model)
    ours = config.quant_method == METHOD
    count = len(int8_layers(part) if ours else _bitsandbytes_layers(part))
    if not count:
        raise UserError(
            f"{type(part).__name__} has no linear layer that can be quantised (GPT-2's Conv1D is "
            "none). Leave --quantization and --enable_int8 out"
        )
    bits = "int8" if ours or config.load_in_8bit else "nf4"
    reason = "asked for" if ours else "bitsandbytes: made floats again at every use, which is slow"
    floats = str(model.dtype).removeprefix("torch.")
    choices.add("base weights", f"{bits} in {count} linear layers, else {floats}", reason)
    if ours:
        way, reason = way_of(device.type)
        said = "multiplied as int8, both ways" if way == "int8" else "made floats at every use"
        choices.add("int8 products", said, reason)
        choices.add("int8 passes", *gpu.passes_here(device))


def count_parameters(model: Any) -> int:
    """Parameters of a model under PEFT, as many as before its weights were quantised."""
    ends = ".weight_scale"
    scales = (p.numel() for name, p in model.named_parameters() if name.endswith(ends))
    # PEFT knows how many numbers bitsandbytes packs into a byte.
    return model.get_nb_trainable_parameters()[1] - sum(scales)


def _bitsandbytes_layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if type(m).__module__.startswith("bitsandbytes.")]


def _check_bitsandbytes(name: str) -> None:
    try:
        import bitsandbytes  # noqa: F401
    # What a build for another machine was seen to raise.
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"--quantization {name} needs bitsandbytes, which cannot be imported here ({error}). "
            "Install it: pip install 'tuninglab[int8]'; or use --quantization int8, which needs "
            "nothing besides"
        ) from error


def base_format_of(config: FinetuneConfig) -> Any:
    """How the frozen weights are quantised, as a configuration of transformers; None: not at all.

    Raises:
        UserError: bitsandbytes is asked for and missing.
    """
    tuning = config.tuning_config
    skip = left_in_float(tuning, fresh_bridge=config.lang_encoder is not None)
    # Tokens train as rows of float tables; new ones make those of plain language models grow.
    own_words = tuning.train_answer_tokens == "auto" and config.model == "embedded" and config.data
    rows = tuning.train_new_tokens or tuning.train_answer_tokens == "true" or own_words
    head = not (rows or config.lang_encoder)
    return quantization_config(config.base_format, DTYPES[config.precision], skip, head)

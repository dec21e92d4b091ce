"""Weights that are quantised as they are read, by whatever quantisation of transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedConfig, modeling_utils
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from tuninglab.errors import UserError
from tuninglab.untrusted import shown


def quantised(quantization: Any, config: PreTrainedConfig, where: str) -> dict[str, Any]:
    """What `load_weights` needs besides to quantise the weights of a model as they are read.

    Args:
        quantization: a configuration of transformers; None quantises nothing.
        config: of the model.
        where: the model's name, for messages.

    Raises:
        UserError: the weights were quantised otherwise before they were saved.
    """
    saved = getattr(config, "quantization_config", None)
    method = saved.get("quant_method") if isinstance(saved, dict) else None
    # bitsandbytes' own are older than that word.
    older = isinstance(saved, dict) and (saved.get("load_in_8bit") or saved.get("load_in_4bit"))
    if saved is not None and not older and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise UserError(
            f"{where}: quantization_config in config.json has quant_method {shown(repr(method))}, "
            f"which transformers does not know: {', '.join(AUTO_QUANTIZATION_CONFIG_MAPPING)}"
        )
    if quantization is None or saved is None:
        return {} if quantization is None else {"quantization_config": quantization}
    # One method of bitsandbytes has two kinds of weights.
    four_bits = bool(saved.get("load_in_4bit")), bool(getattr(quantization, "load_in_4bit", False))
    if method != quantization.quant_method or four_bits[0] != four_bits[1]:
        raise UserError(
            f"{where} was saved with weights quantised by {method or 'bitsandbytes'}. Leave "
            "--quantization and --enable_int8 out to use them as they are, or name the model that "
            "they were made from"
        )
    return {}


@contextmanager
def read_piecewise() -> Iterator[None]:
    """Let transformers read every weight from its file when it needs it.

    It maps whole files into memory otherwise, where all that was read counts as used until the
    model is complete: the peak was 4.9 times the size of the int8 model for a float32 checkpoint,
    and is 1.2 times so (a LLaMA of 119 M parameters in 5 files).
    """
    library: Any = modeling_utils
    mapping = library.safe_open

    def reading(*args: Any, **kwargs: Any) -> Any:
        return mapping(*args, **kwargs | {"backend": "pread"})

    # transformers 5.23 reads so on Windows and Apple's GPUs only, and has no switch for it.
    library.safe_open = reading
    try:
        yield
    finally:
        library.safe_open = mapping

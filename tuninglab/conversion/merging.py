"""An adapter becomes part of its base: a plain model, of which no layer knows of tuning."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tuninglab.adapters.kept_settings import adapter_prompt
from tuninglab.adapters.lora import quietly
from tuninglab.adapters.saving import load_adapter
from tuninglab.console import Choices
from tuninglab.models.build import load_flamingo
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.processing import FlamingoProcessor
from tuninglab.run_folder.named_model import NamedModel, base_told


def tuned_model(
    named: NamedModel, dtype: str | None, device: torch.device, choices: Choices
) -> tuple[PeftModel, FlamingoProcessor]:
    """The adapter on its base, which is made of floats, in evaluation mode; and its processor.

    Args:
        named: a base and an adapter.
        dtype: what the merged model shall be in (fp32, bf16, fp16); None: what its base is in.
        device: where it computes.
        choices: where to say that a base was saved in int8.

    Raises:
        UserError: the base is gone or damaged, or the adapter is not of it.
    """
    adapter: Any = named.adapter
    # A sum in 32 bits needs all 32 of what was saved; fewer are made of the sum, rounded once.
    read_as = "fp32" if dtype == "fp32" else None
    with base_told(named):
        model, processor = load_flamingo(named.base, read_as)
    if getattr(model.config, "quantization_config", None) is not None:
        choices.add("base weights", "made floats again", "they were saved quantised")
        model.dequantize(model.dtype)
    model.to(device)  # pyright: ignore[reportArgumentType]
    model.requires_grad_(False)
    tuned = load_adapter(model, adapter).eval()
    processor.use_prompt(adapter_prompt(Path(adapter)))
    return tuned, processor


@torch.no_grad()
def merged(model: PeftModel, dtype: torch.dtype | None = None) -> FlamingoForConditionalGeneration:
    """The base with the adapter added to its weights, in place; no layer of PEFT is left.

    One layer after the other is summed in float32 and rounded once, to its own format or to
    `dtype`: a model of 16 bits takes one layer more than itself. PEFT's `merge_and_unload` rounds
    what DoRA's lengths are made of several times (peft 0.21, lora/variants.py).

    Args:
        model: what `load_adapter` made, with the adapter on.
        dtype: of all weights in the end; None leaves each what it is.
    """
    _untie(model.get_base_model())
    for layer in [m for m in model.modules() if isinstance(m, BaseTunerLayer)]:
        _merge_layer(layer, dtype)
    # Merged above: it only takes the layers of PEFT away.
    plain: Any = quietly(model.unload)
    for parameter in plain.parameters():
        if dtype is not None and parameter.is_floating_point():
            # Not model.to(dtype): that would round the float32 rotary tables too.
            parameter.data = parameter.data.to(dtype)
    if dtype is not None:
        plain.config.dtype = dtype
    return plain.requires_grad_(False).eval()


def _merge_layer(layer: Any, dtype: torch.dtype | None) -> None:
    held = layer.get_base_layer()
    saved = held.weight.dtype
    held.weight.data = held.weight.data.float()
    layer.merge()
    held.weight.data = held.weight.data.to(dtype or saved)


def _untie(base: Any) -> None:
    """Give the output layer a weight of its own where it shares the table's, and one is tuned.

    LoRA and rows of tokens change what one of the two computes; merged into the weight of both,
    they would change both. Where PEFT tunes rows of both as one (`tied_adapter`), they stay one.
    """
    table, head = base.get_input_embeddings(), base.get_output_embeddings()
    plain_table, plain_head = _plain(table), _plain(head)
    if head is None or plain_table.weight is not plain_head.weight:
        return
    tuned = table is not plain_table or head is not plain_head
    if tuned and getattr(getattr(head, "token_adapter", None), "tied_adapter", None) is None:
        plain_head.weight = nn.Parameter(plain_head.weight.detach().clone(), requires_grad=False)
        for config in (base.config, base.config.text_config, base.lang_encoder.config):
            config.tie_word_embeddings = False


def _plain(module: Any) -> Any:
    """A layer without what PEFT put around it."""
    inside = getattr(module, "token_adapter", module)
    return inside.get_base_layer() if isinstance(inside, BaseTunerLayer) else module

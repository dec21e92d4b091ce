"""A Flamingo as a checkpoint of OpenFlamingo 2.0.1, in the layout of its releases."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuninglab.disk import whole_file
from tuninglab.models.configuration import BRIDGE, FlamingoConfig
from tuninglab.models.formats.open_flamingo_keys import LANG, LAYER

# What OpenFlamingo 2.0.1 always saves (train_utils.py), and the heads, without which the output
# rows of new tokens would be lost.
KEPT_OUTSIDE = re.compile(r"(?:.+\.)?(?:embed\w*|wte|wpe|word_embeddings)\.(?:weight|bias)")
HEAD = re.compile(r"(?:lm_head|embed_out)\.(weight|bias)")


def write_open_flamingo(
    model_config: FlamingoConfig, tensors: Mapping[str, Tensor], out: Path
) -> dict[str, Any]:
    """Write checkpoint.pt: a flat state dict that `load_state_dict(..., strict=False)` takes.

    Args:
        model_config: of the Flamingo.
        tensors: its weights by name, memory-mapped: each is read as it is written.
        out: the file; it appears when it is whole.

    Returns:
        The names that were written, their parameters, and what a reader must know.
    """
    state = OrderedDict(_released_names(tensors))
    # torch's own place for facts about modules: load_state_dict passes over what it does not know.
    # Shapes tell neither the number of heads, nor the kind of tower, nor the media mode.
    facts = {name: getattr(model_config, name) for name in ("perceiver_heads", "cross_attn_heads")}
    facts |= {"tower": model_config.vision_config.model_type, "media_mode": model_config.media_mode}
    state._metadata = {"tuninglab": facts}  # pyright: ignore
    with whole_file(out) as beside:
        torch.save(state, beside)
    weights = {id(tensor): tensor.numel() for tensor in state.values()}
    return {
        "out": str(out),
        "keys": sorted(state),
        "parameters": sum(weights.values()),
        "notes": _notes(model_config, state),
    }


def _released_names(tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        own = name.removeprefix(LANG)
        layer, head = LAYER.fullmatch(own), HEAD.fullmatch(own)
        kept = layer[3] == "gated_cross_attn_layer" if layer else KEPT_OUTSIDE.fullmatch(own)
        if head and any(other.startswith(f"{LANG}gpt_neox.") for other in tensors):
            # The head's name in GPT-NeoX depends on the version of transformers that reads it;
            # one tensor under two names is saved once.
            for module in ("embed_out", "lm_head"):
                yield f"{LANG}{module}.{head[1]}", tensor
        elif name.startswith("perceiver.") or head or (kept and name.startswith(LANG)):
            yield name, tensor


def _notes(model_config: FlamingoConfig, state: Mapping[str, Tensor]) -> list[str]:
    text, every = model_config.text_config, model_config.cross_attn_every_n_layers
    notes = [
        "open_flamingo takes the language model's own layers and the tower from what its factory "
        f"is given: the {text.model_type} and the tower of this Flamingo, with "
        f"cross_attn_every_n_layers={every}. Changes to them (a merged "
        "LoRA) are not in the file",
    ]
    # What OpenFlamingo builds, whatever a file says (helpers.py), are the defaults here.
    strange = [
        f"{name} {getattr(model_config, name)} (there {getattr(FlamingoConfig, name)})"
        for name in BRIDGE
        if getattr(model_config, name) != getattr(FlamingoConfig, name)
    ]
    if strange:
        notes.append(
            f"open_flamingo 2.0.1 builds one bridge only and will not take this one: "
            f"{', '.join(strange)}; tuninglab convert reads the file back"
        )
    if model_config.vision_config.model_type != "clip_vision_model":
        notes.append(
            f"open_flamingo builds the towers of open_clip only and will not take this "
            f"{model_config.vision_config.model_type}; tuninglab convert reads the file back"
        )
    if model_config.media_mode != "previous":
        notes.append(
            f"media_mode is {model_config.media_mode}; open_flamingo 2.0.1 computes `previous` only"
        )
    layers = next(f[1] for n in state if (f := LAYER.fullmatch(n.removeprefix(LANG))))
    if text.model_type not in ("llama", "mpt", "gpt_neox", "opt", "gptj"):
        notes.append(
            f"open_flamingo does not know {text.model_type}: call its factory with "
            f"decoder_layers_attr_name={layers!r}"
        )
    return notes

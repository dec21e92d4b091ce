"""Multimodal-GPT's checkpoints: a LoRA on an OpenFlamingo 9B, as an adapter in PEFT's layout."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from tuninglab.errors import UserError
from tuninglab.models.formats.layout import Checkpoint, Key, Layout
from tuninglab.models.formats.open_clip import clip_keys
from tuninglab.models.formats.released import released_as

# Multimodal-GPT, builder.py: PEFT wraps the language model alone, and the Flamingo is around it;
# here PEFT wraps the whole Flamingo.
WRAPPED = "lang_encoder.base_model.model."
OUTER = "base_model.model."
LORA = re.compile(
    r"lang_encoder\.base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight"  # peft 0.2 had none
)
LAYER = re.compile(r"model\.layers\.(\d+)\.(?:decoder_layer|gated_cross_attn_layer)\.(.+)")
ALPHA, MOST_ALPHA = 16, 1e6
# Of the release by construction: 32 x 4 projections and 8 x 5 layers of gated blocks, two each.
RELEASED_SIZE = (336, 23_461_888)
MEDIA_REASON = (
    "Multimodal-GPT is OpenFlamingo v1 without media placement augmentation: text sees the image "
    "after it"
)


def describe(checkpoint: Checkpoint) -> Layout:
    """What a LoRA checkpoint of Multimodal-GPT says of its model, with the fate of every key.

    The target of a key is its name in adapter_model.safetensors.

    Raises:
        UserError: there is no LoRA in it, or its shapes do not fit together.
    """
    tensors = checkpoint.tensors
    lora = {name: found for name in tensors if (found := LORA.fullmatch(name))}
    if not lora:
        raise UserError(
            f"{checkpoint.path} holds no LoRA of Multimodal-GPT: expected keys such as {WRAPPED}"
            "model.layers.0.decoder_layer.self_attn.q_proj.lora_A.weight"
        )
    # A dict, to keep the order of the file.
    modules = dict.fromkeys(found[1] for found in lora.values())
    # lora_A is (R, inputs), lora_B (outputs, R).
    ranks = {tensors[n].shape[0 if found[2] == "A" else -1] for n, found in lora.items()}
    if len(ranks) != 1 or len(lora) != 2 * len(modules):
        raise UserError(
            f"{checkpoint.path}: {len(lora)} LoRA tensors of rank {sorted(ranks)} on {len(modules)}"
            " layers; expected lora_A and lora_B of one rank on each. The file is damaged"
        )
    width, media = _width(tensors, lora, "q_proj", "to_q"), _width(tensors, lora, "to_kv")
    blocks = [found for found in map(LAYER.fullmatch, modules) if found]
    layout = Layout(
        format="multimodal_gpt LoRA",
        family="llama",
        width=width or 0,
        media_width=media,
        gated_layers=sorted({int(b[1]) for b in blocks if "gated_cross_attn" in b[0]}),
        media_mode="next-v1",
        media_reason=MEDIA_REASON,
        keys=_keys(tensors, modules),
    )
    size = len(lora), sum(tensors[name].numel() for name in lora)
    # A LoRA of another rank on the same model has the same widths.
    if size == RELEASED_SIZE:
        layout.released = released_as(layout)
    layout.facts = [
        f"LoRA of rank {ranks.pop()} on {len(modules)} layers ({', '.join(_ends(modules))}): "
        f"{size[0]} tensors, {size[1]:,} parameters",
        "it belongs to OpenFlamingo-9B (v1), converted with --from open_flamingo; name that "
        "directory as --model",
    ]
    return layout


def adapter(checkpoint: Checkpoint, layout: Layout) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The checkpoint as a PEFT adapter of the whole Flamingo.

    Returns:
        The content of adapter_config.json without the base model's name, and the tensors of
        adapter_model.safetensors by key.
    """
    tensors = {
        key.target: key.rows(checkpoint.tensors).contiguous() for key in layout.keys if key.target
    }
    names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith("lora_A.weight")]
    first = tensors[f"{names[0]}.lora_A.weight"]
    tuning = _tuning(checkpoint)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "r": first.shape[0],
        "lora_alpha": tuning.get("lora_alpha", ALPHA),
        "lora_dropout": tuning.get("lora_dropout", 0.0),
        "bias": "none",
        # As tuning writes it (adapters/lora.py): the tower and the Perceiver have layers of the
        # same names.
        "target_modules": _ends(names),
        "exclude_modules": r"(?!lang_encoder\.).*",
    }
    return config, tensors


def alpha_reason(checkpoint: Checkpoint) -> str:
    """How the adapter's lora_alpha is known, which no tensor tells."""
    if _tuning(checkpoint):
        return "tuning_config in the checkpoint"
    return "of Multimodal-GPT's lora_config.py; no tuning_config could be read from the file"


def _tuning(checkpoint: Checkpoint) -> Mapping[str, Any]:
    found = _find(checkpoint.extras.get("tuning_config"), "lora_alpha")
    if found is None:
        return {}
    alpha, dropout = found["lora_alpha"], found.get("lora_dropout", 0.0)
    numbers = isinstance(alpha, int | float) and isinstance(dropout, int | float)
    return found if numbers and 0 < alpha < MOST_ALPHA and 0 <= dropout < 1 else {}


def _keys(tensors: Mapping[str, Tensor], modules: Collection[str]) -> list[Key]:
    # Of an unfrozen vision tower, with targets as the adapter names them.
    tower = [
        replace(key, target=key.target and OUTER + key.target)
        for key in clip_keys(tensors, "vision_encoder.")
    ]
    others = [name for name in tensors if not name.startswith("vision_encoder.")]
    return [*tower, *(_fate(name, modules) for name in others)]


def _fate(name: str, modules: Collection[str]) -> Key:
    found = LORA.fullmatch(name)
    if found:
        return Key(name, "used", f"{OUTER}lang_encoder.{found[1]}.lora_{found[2]}.weight")
    # What `unfrozen` of the tuning_config trained besides; keys as adapters/saving.py writes them.
    if name.startswith("perceiver."):
        return Key(name, "used", OUTER + name)
    if name.startswith(WRAPPED):
        own = name.removeprefix(WRAPPED)
        if own.startswith("gated_cross_attn_layers."):
            return Key(name, "dropped", reason="another name for weights of the decoder layers")
        if own.endswith(".rotary_emb.inv_freq"):
            return Key(name, "dropped", reason="a buffer that is computed")
        module, _, kind = own.rpartition(".")
        # PEFT keeps the layer under a LoRA as base_layer since 0.7.
        if module in modules:
            own = f"{module}.base_layer.{kind}"
        return Key(name, "used", f"{OUTER}lang_encoder.{own}")
    return Key(name, "unexpected", reason="no such weight in a Multimodal-GPT")


def _width(tensors: Mapping[str, Tensor], lora: Mapping[str, Any], *ends: str) -> int | None:
    """Inputs of the first layer with one of these names, from its lora_A (R, inputs)."""
    for name, found in lora.items():
        if found[2] == "A" and found[1].rpartition(".")[2] in ends:
            return tensors[name].shape[1]
    return None


def _ends(modules: Iterable[str]) -> list[str]:
    """Ends of the names: q_proj, ..., to_q, ..., ff.1, ff.3."""
    ends = {}
    for module in modules:
        names = module.split(".")
        ends[".".join(names[-2:] if names[-1].isdigit() else names[-1:])] = None
    return list(ends)


def _find(value: Any, name: str) -> Mapping[str, Any] | None:
    """The mapping that has this name: saved configs are nested one level deeper than read ones."""
    # What the reader of foreign objects could not recover is None or a list.
    if not isinstance(value, Mapping):
        return None
    if name in value:
        return value
    return next((found for inner in value.values() if (found := _find(inner, name))), None)

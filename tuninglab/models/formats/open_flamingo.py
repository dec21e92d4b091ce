"""OpenFlamingo's checkpoints, v1 and v2: which model they are of, and the fate of every key."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from tuninglab.errors import UserError
from tuninglab.models.formats.layout import MEDIA_MODES, MOST_LAYERS, Checkpoint, Key, Layout
from tuninglab.models.formats.open_flamingo_keys import GATED_ALIAS, LANG, LAYER, fates, missing
from tuninglab.models.formats.released import released_as

# Where a language model keeps its decoder layers (OpenFlamingo 2.0.1, factory.py) tells its family;
# other architectures share these names, which is for the conversion to settle.
FAMILIES = {
    "model.layers": "llama",
    "transformer.blocks": "mpt",
    "gpt_neox.layers": "gpt_neox",
    "model.decoder.layers": "opt",
    "transformer.h": "gptj",
}
TABLES = {
    "llama": "model.embed_tokens.weight",
    "mpt": "transformer.wte.weight",
    "gpt_neox": "gpt_neox.embed_in.weight",
    "opt": "model.decoder.embed_tokens.weight",
    "gptj": "transformer.wte.weight",
}
# 8 heads in both modules (OpenFlamingo 2.0.1, helpers.py): shapes tell their product with the width
# of a head only.
HEADS = 8
LATENTS = "perceiver.latents"


def describe(checkpoint: Checkpoint) -> Layout:
    """What an OpenFlamingo checkpoint says of its model, with the fate of every key.

    Raises:
        UserError: it is no OpenFlamingo, essential weights are missing, or two copies of a weight
            differ.
    """
    tensors = checkpoint.tensors
    path = _layers_path(tensors, checkpoint.path)
    kept = _metadata(checkpoint)
    layout, source = layout_of(checkpoint, "open_flamingo v2", path, fates(tensors, path), kept)
    layout.keys += missing(source, path, layout.gated_layers)
    _set_version(layout, tensors, kept)
    layout.tower = kept.get("tower", layout.tower)
    layout.released = released_as(layout)
    layout.facts = _facts(layout, source)
    return layout


def layout_of(
    checkpoint: Checkpoint, kind: str, path: str, keys: list[Key], kept: Mapping[str, Any]
) -> tuple[Layout, dict[str, Tensor]]:
    """What the shapes of a whole Flamingo tell, in any format, and its tensors by our names.

    Args:
        checkpoint: as read.
        kind: its format.
        path: of the decoder layers.
        keys: their fates.
        kept: numbers of heads, where the file tells them.

    Raises:
        UserError: weights that tell a width are missing or of another shape, or gated blocks are.
    """
    where = checkpoint.path
    layers, family = _gated_layers(keys, path, where), FAMILIES[path]
    source = {
        key.target: checkpoint.tensors[key.name] for key in keys if key.target and key.part is None
    }
    first = f"{LANG}{path}.{layers[0]}.gated_cross_attn_layer."
    norm, latents = _sized(source, f"{first}attn.norm.weight", 1), _sized(source, LATENTS, 2)
    tables = (_sized(source, LANG + name, 2) for name in (TABLES[family], "lm_head.weight"))
    table = next((found for found in tables if found is not None), None)
    if latents is None or norm is None and table is None:
        gone = LATENTS if latents is None else f"{first}attn.norm.weight"
        raise UserError(
            f"{where} is incomplete: {gone} is not there, which tells a width of the model. Use "
            "the whole checkpoint"
        )
    layout = Layout(
        format=kind,
        family=family,
        width=norm.shape[0] if norm is not None else table.shape[1],  # pyright: ignore
        media_width=latents.shape[1],
        gated_layers=layers,
        rows=None if table is None else table.shape[0],
        perceiver=_bridge_numbers(source, first, kept),
        keys=keys,
    )
    return layout, source


def _sized(source: Mapping[str, Tensor], name: str, dimensions: int) -> Tensor | None:
    """A tensor that tells a number of the model, if it is there.

    Raises:
        UserError: it has other dimensions.
    """
    tensor = source.get(name)
    if tensor is not None and (tensor.ndim != dimensions or not tensor.numel()):
        raise UserError(
            f"{name} has shape {tuple(tensor.shape)}; expected {dimensions} dimensions, none of "
            "them 0. The checkpoint is of another kind, or sharded: save the whole state dict"
        )
    return tensor


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """What our writer added to the metadata of the state dict, which torch keeps for modules."""
    kept = (checkpoint.extras.get("_metadata") or {}).get("tuninglab")
    if not isinstance(kept, dict):
        return {}
    heads = {name: kept.get(name) for name in ("perceiver_heads", "cross_attn_heads")}
    fine: dict[str, Any] = {k: n for k, n in heads.items() if type(n) is int and n >= 1}
    mode, tower = kept.get("media_mode"), kept.get("tower")
    fine |= {"tower": tower} if isinstance(tower, str) else {}
    return {**fine, "media_mode": mode} if mode in MEDIA_MODES else fine


def _layers_path(tensors: Mapping[str, Tensor], where: str) -> str:
    own = [name.removeprefix(LANG) for name in tensors if name.startswith(LANG)]
    paths = {found[1] for found in map(LAYER.fullmatch, own) if found}
    if not paths and any(map(GATED_ALIAS.fullmatch, own)):
        # Only the copies are in the file: the token table tells where the layers are.
        tables = {table: family for family, table in TABLES.items() if family != "gptj"}
        families = {tables[name] for name in own if name in tables}
        paths = {path for path, family in FAMILIES.items() if family in families}
    if len(paths) != 1 or not paths <= FAMILIES.keys():
        found = f"found {', '.join(sorted(paths))}" if paths else "found none"
        raise UserError(
            f"{where} is no OpenFlamingo checkpoint: expected gated blocks below one of "
            f"{', '.join(f'{LANG}{path}' for path in FAMILIES)}, {found}. Its first keys: "
            f"{', '.join(list(tensors)[:4])}"
        )
    if not any(name.startswith("perceiver.") for name in tensors):
        raise UserError(
            f"{where} has gated blocks but no perceiver.*: it is a part of a Flamingo. Give the "
            "whole checkpoint, as OpenFlamingo's training saves it"
        )
    return paths.pop()


def _gated_layers(keys: Collection[Key], path: str, where: str) -> list[int]:
    """Numbers of the decoder layers at `path` that have a gated block, in any format.

    Raises:
        UserError: there is none, or some are missing between the others.
    """
    start = f"{LANG}{path}."
    found = {
        int(key.target.removeprefix(start).partition(".")[0])
        for key in keys
        if key.target and key.target.startswith(start) and ".gated_cross_attn_layer." in key.target
    }
    layers = sorted(found)
    if not layers:
        raise UserError(f"{where} holds no gated block; give the whole checkpoint of a Flamingo")
    interval = layers[0] + 1
    if layers != [interval * number - 1 for number in range(1, len(layers) + 1)]:
        raise UserError(
            f"{where} has gated blocks before layers {', '.join(map(str, layers))}; expected every "
            "n-th layer. Blocks are missing from the file"
        )
    return layers


def _bridge_numbers(
    source: Mapping[str, Tensor], first: str, kept: Mapping[str, Any]
) -> dict[str, int]:
    """Fields of `FlamingoConfig` that the shapes tell.

    Args:
        source: the tensors of the file by our names.
        first: what stands before the names of the first gated block.
        kept: numbers of heads, where the file tells them.
    """
    # to_q is (heads * width of a head, D), ff.1 (ff_mult * D, D), latents (L, D).
    depths = {int(n.split(".")[2]) for n in source if n.startswith("perceiver.layers.")}
    if max(depths, default=0) >= MOST_LAYERS:
        raise UserError(f"perceiver.layers.{max(depths)} is there; no Perceiver has so many layers")
    numbers = {
        "perceiver_depth": max(depths, default=-1) + 1,
        "perceiver_latents": source[LATENTS].shape[0],
    }
    queries = {"perceiver": "perceiver.layers.0.0.to_q", "cross_attn": f"{first}attn.to_q"}
    for part, name in queries.items():
        tensor = _sized(source, f"{name}.weight", 2)
        if tensor is not None:
            heads = kept.get(f"{part}_heads", HEADS)
            numbers |= {f"{part}_heads": heads, f"{part}_dim_head": tensor.shape[0] // heads}
    # One ratio for Perceiver and gated blocks.
    for name in (f"{first}ff.1", "perceiver.layers.0.1.1"):
        wide = _sized(source, f"{name}.weight", 2)
        if wide is not None:
            numbers["ff_mult"] = wide.shape[0] // wide.shape[1]
    return numbers


def _set_version(layout: Layout, tensors: Mapping[str, Tensor], kept: Mapping[str, Any]) -> None:
    """Which version saved it, and so which image its text sees, with the reason."""
    if kept.get("media_mode"):
        layout.media_mode = kept["media_mode"]
        layout.media_reason = "noted in the file by tuninglab"
        return
    clip = [name for name in tensors if name.startswith("vision_encoder.")]
    alias = [name for name in tensors if GATED_ALIAS.fullmatch(name.removeprefix(LANG))]
    # v2 keeps the list of plain decoder layers too, and its vision_encoder is the tower itself.
    second = [name for name in tensors if name.startswith(f"{LANG}old_decoder_blocks.")]
    second += [name for name in clip if name == "vision_encoder.class_embedding"]
    if layout.family != "llama":
        layout.media_reason = f"OpenFlamingo v1 had no {layout.family}"
    elif second:
        layout.media_reason = f"{second[0]} is in the file, as only v2 saves it"
    elif clip or alias:
        layout.format, layout.media_mode = "open_flamingo v1", "next-v1"
        layout.media_reason = f"{(clip or alias)[0]} is in the file, as only v1 saves it"
    else:
        layout.media_reason = (
            "neither vision_encoder.* nor gated_cross_attn_layers.*, as v1 has them"
        )


def _facts(layout: Layout, source: Mapping[str, Tensor]) -> list[str]:
    facts = []
    if layout.rows is None:
        facts.append("the token table is not in the file: that of the language model is used")
    if f"{LANG}lm_head.weight" not in source and layout.family in ("llama", "gptj"):
        facts.append("the output layer (lm_head) is not in the file: OpenFlamingo never saved it")
    if not any(name.startswith("vision_encoder.") for name in source):
        facts.append("no vision tower in the file: that of --vision_encoder is used")
    for part in ("perceiver", "cross_attn"):
        if layout.perceiver.get(f"{part}_dim_head", 64) != 64:
            facts.append(
                f"{part}: {layout.perceiver[f'{part}_heads']} heads of "
                f"{layout.perceiver[f'{part}_dim_head']}, where OpenFlamingo has 8 of 64"
            )
    return facts

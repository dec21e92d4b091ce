"""Otter's checkpoints: a whole Flamingo in a directory, with names of its own for some modules."""

import re
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from tuninglab.errors import UserError
from tuninglab.models.formats.layout import Checkpoint, Key, Layout
from tuninglab.models.formats.open_flamingo import FAMILIES, LATENTS, TABLES, layout_of
from tuninglab.models.formats.open_flamingo_keys import (
    BUFFER,
    LANG,
    in_language_model,
    in_perceiver,
)
from tuninglab.models.formats.released import released_as

# The language models of Otter that transformers knows: the usual one of each family.
USUAL = {"llama": "LLaMA-7B", "mpt": "mosaicml/mpt-7b-instruct"}
LAYERS = {family: path for path, family in FAMILIES.items() if family in USUAL}
# Otter 2024-03, modeling_otter.py: these are built in code that transformers does not have.
FOREIGN = {"MosaicGPT": "MPT-1B (MosaicGPT)", "RWForCausalLM": "Falcon"}

# CLIP's names in transformers, of which Otters were saved with one level more.
VISION = re.compile(
    r"embeddings\.(?:class_embedding|(?:patch|position)_embedding\.weight)"
    r"|(?:pre_layrnorm|post_layernorm)\.(?:weight|bias)"
    r"|encoder\.layers\.\d+\.(?:self_attn\.(?:[qkv]|out)_proj|layer_norm[12]|mlp\.fc[12])"
    r"\.(?:weight|bias)"
)


def describe(checkpoint: Checkpoint) -> Layout:
    """What an Otter checkpoint says of its model, with the fate of every key.

    Raises:
        UserError: it is no Otter, or one that a Flamingo here cannot compute.
    """
    _refuse(checkpoint)
    tensors = checkpoint.tensors
    family = next((name for name in USUAL if LANG + TABLES[name] in tensors), None)
    perceiver = [f"perceiver.layers.0.{level}norm_media.weight" for level in ("", "0.")]
    if family is None or LATENTS not in tensors:
        raise UserError(
            f"{checkpoint.path} is no whole Otter: it needs {LATENTS} and a token table "
            f"({' or '.join(LANG + TABLES[name] for name in USUAL)}). Give the "
            "directory with config.json and all weight files"
        )
    if not any(name in tensors for name in perceiver):
        raise UserError(f"{checkpoint.path} holds no perceiver.layers; the file is incomplete")
    keys = [_fate(name, LAYERS[family]) for name in tensors]
    # Otter's config.json names no heads: 8 wherever, as in OpenFlamingo.
    layout, _ = layout_of(checkpoint, "otter", LAYERS[family], keys, {})
    layout.media_mode, layout.media_reason = _media_mode(_config(checkpoint))
    layout.released = released_as(layout)
    layout.facts = _facts(checkpoint, layout)
    return layout


def parts(checkpoint: Checkpoint, layout: Layout) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of Otter's language model and vision tower, for `AutoConfig.for_model`.

    Each is a dict with its `model_type`; the rows of the token table are those of the file.

    Raises:
        UserError: there is no config.json, or it does not name the two.
    """
    config = _config(checkpoint)
    if not config:
        raise UserError(
            f"{checkpoint.path}: Otter's config.json is missing, which tells the parts of the "
            "model. Put it beside the weights, or name --lang_encoder and --vision_encoder"
        )
    # Otter's configurations of 2023 spell out generation settings (max_length 20, and for MPT no
    # cache) and where their weights once lay; neither says anything of the model.
    settings = {name for name in vars(GenerationConfig()) if not name.endswith("_token_id")}
    settings |= {"_name_or_path", "architectures", "torch_dtype", "transformers_version"}
    text, vision = (
        {name: value for name, value in (config.get(part) or {}).items() if name not in settings}
        for part in ("text_config", "vision_config")
    )
    if "model_type" not in text:
        raise UserError(
            f"{checkpoint.path}: config.json has no text_config with a model_type; copy it again, "
            "or name --lang_encoder"
        )
    # Tokens were added after text_config was written; the file knows how many rows came of it.
    return text | {"vocab_size": layout.rows}, vision | {"model_type": "clip_vision_model"}


def _config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    return checkpoint.extras.get("config") or {}


def _refuse(checkpoint: Checkpoint) -> None:
    text = _config(checkpoint).get("text_config") or {}
    for architecture in text.get("architectures") or []:
        if architecture in FOREIGN:
            raise UserError(
                f"{checkpoint.path} is an Otter around {FOREIGN[architecture]}, whose code is not "
                "in transformers; LLaMA and MPT-7B Otters can be converted"
            )
    for name in checkpoint.tensors:
        if name in ("perceiver.frame_embs", "perceiver.media_time_embs"):
            raise UserError(
                f"{checkpoint.path} is a video Otter: {name} is added to the features of every "
                "frame, and the Perceiver here, like OpenFlamingo's, has none. Use an image model "
                "(OTTER-Image-LLaMA7B, OTTER-Image-MPT7B)"
            )
        if name.startswith("lang_encoder.base_model."):
            raise UserError(
                f"{checkpoint.path} was saved with LoRA in place ({name}). Merge it first: "
                "model.lang_encoder = model.lang_encoder.merge_and_unload(), then save_pretrained"
            )


def _media_mode(settings: Mapping[str, Any]) -> tuple[str, str]:
    # Only the intermediate "flamingo" classes of the Otter project read this setting.
    if settings.get("model_type") == "flamingo" and settings.get("only_attend_previous") is False:
        return "next-v1", "only_attend_previous is false in config.json"
    return "previous", "Otter attends to the image before each token, whatever config.json says"


def _fate(name: str, path: str) -> Key:
    """The fate of one key of an Otter whose decoder layers are at `path`."""
    part, _, own = name.partition(".")
    known, reason = False, "no such part in an Otter"
    if BUFFER.fullmatch(own):
        return Key(name, "dropped", reason="a buffer that is computed")
    if part == "vision_encoder":
        # transformers 5 has no such level; Otters were saved with 4.
        own = own.removeprefix("vision_model.")
        known, reason = VISION.fullmatch(own), "no such weight in a CLIP vision tower"
    elif part == "perceiver":
        # Attention and feed-forward are one module in Otter, and two in a list here.
        own = re.sub(r"^(layers\.\d+)\.feed_forward\.", r"\1.1.", own)
        own = re.sub(r"^(layers\.\d+)\.(norm_|to_)", r"\1.0.\2", own)
        known, reason = in_perceiver(own), "no such weight in a Perceiver"
    elif part == "lang_encoder":
        # Names under which OpenFlamingo registers the same modules again.
        if own.startswith(("gated_cross_attn_layers.", "old_decoder_blocks.")):
            return Key(name, "dropped", reason="another name for weights of the decoder layers")
        own = own.replace(".gated_cross_attn_layer.feed_forward.", ".gated_cross_attn_layer.ff.")
        known = in_language_model(own, path)
        reason = "no such weight in a language model with gated blocks"
    if known:
        return Key(name, "used", f"{part}.{own}")
    return Key(name, "unexpected", reason=reason)


def _facts(checkpoint: Checkpoint, layout: Layout) -> list[str]:
    facts = [
        "tokens after the base vocabulary: <|endofchunk|>, <image>, <answer>, then <PAD> where "
        "the tokenizer has no pad token",
        "the whole model is in the file: no other weights are needed",
    ]
    name = (_config(checkpoint).get("text_config") or {}).get("_name_or_path")
    origin = f"{name} in config.json" if name else USUAL[layout.family]
    facts.append(f"tokenizer: of the base language model ({origin}), if the directory holds none")
    return facts

"""Otter's checkpoints: a whole Flamingo in a directory, with names of its own for some modules."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from tuninglab.errors import UserError
from tuninglab.models.formats.layout import Checkpoint, Key, Layout
from tuninglab.models.formats.released import matching

# The language models of Otter that transformers knows: path of their decoder layers and of the
# token table, and the weights inside and outside of the layers.
LAYERS = {"llama": "model.layers", "mpt": "transformer.blocks"}
TABLES = {"llama": "model.embed_tokens.weight", "mpt": "transformer.wte.weight"}
LAYER_WEIGHTS = {
    "llama": r"self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj"
    r"|(?:input|post_attention)_layernorm",
    "mpt": r"norm_[12]|attn\.(?:Wqkv|out_proj)|ffn\.(?:up|down)_proj",
}
OTHER_WEIGHTS = {
    "llama": r"model\.(?:embed_tokens|norm)|lm_head",
    "mpt": r"transformer\.(?:wte|norm_f)|lm_head",
}
# Otter 2024-03, modeling_otter.py: these are built in code that transformers does not have.
FOREIGN = {"MosaicGPT": "MPT-1B (MosaicGPT)", "RWForCausalLM": "Falcon"}

# Names as they are here, after Otter's own were translated: a key that matches none is unexpected.
VISION = re.compile(
    r"embeddings\.(?:class_embedding|(?:patch|position)_embedding\.weight)"
    r"|(?:pre_layrnorm|post_layernorm)\.(?:weight|bias)"
    r"|encoder\.layers\.\d+\.(?:self_attn\.(?:[qkv]|out)_proj|layer_norm[12]|mlp\.fc[12])"
    r"\.(?:weight|bias)"
)
PERCEIVER = re.compile(
    r"latents|norm\.(?:weight|bias)|layers\.\d+\.(?:0\.(?:norm_(?:media|latents)\.(?:weight|bias)"
    r"|to_(?:q|kv|out)\.weight)|1\.(?:0\.(?:weight|bias)|[13]\.weight))"
)
GATED = re.compile(
    r"(?:attn|ff)_gate|attn\.norm\.(?:weight|bias)|attn\.to_(?:q|kv|out)\.weight"
    r"|ff\.(?:0\.(?:weight|bias)|[13]\.weight)"
)
# Each projection is 8 heads wide in Otter's classes, which write no number into config.json.
HEADS = 8


def describe(checkpoint: Checkpoint) -> Layout:
    """What an Otter checkpoint says of its model, with the fate of every key.

    Raises:
        UserError: it is no Otter, or one that a Flamingo here cannot compute.
    """
    _refuse(checkpoint)
    tensors = checkpoint.tensors
    family = next(
        (name for name, table in TABLES.items() if f"lang_encoder.{table}" in tensors), None
    )
    perceiver = [f"perceiver.layers.0.{level}norm_media.weight" for level in ("", "0.")]
    if family is None or "perceiver.latents" not in tensors:
        raise UserError(
            f"{checkpoint.path} is no whole Otter: it needs perceiver.latents and a token table "
            f"({' or '.join(f'lang_encoder.{table}' for table in TABLES.values())}). Give the "
            "directory with config.json and all weight files"
        )
    if not any(name in tensors for name in perceiver):
        raise UserError(f"{checkpoint.path} holds no perceiver.layers; the file is incomplete")
    table = tensors[f"lang_encoder.{TABLES[family]}"]
    mode, reason = _media_mode(_config(checkpoint))
    layout = Layout(
        format="otter",
        family=family,
        width=table.shape[1],
        media_width=tensors["perceiver.latents"].shape[1],
        gated_layers=_gated_layers(tensors, family),
        rows=table.shape[0],
        perceiver=_numbers(tensors, family),
        media_mode=mode,
        media_reason=reason,
        keys=[_fate(name, family) for name in tensors],
    )
    layout.released = " or ".join(model.name for model in matching(layout)) or None
    layout.facts = _facts(checkpoint, layout)
    return layout


def parts(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
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
    text, vision = (dict(config.get(name) or {}) for name in ("text_config", "vision_config"))
    if "model_type" not in text:
        raise UserError(
            f"{checkpoint.path}: config.json has no text_config with a model_type; copy it again, "
            "or name --lang_encoder"
        )
    family = describe(checkpoint).family
    # Tokens were added after text_config was written; the file knows how many rows came of it.
    text["vocab_size"] = len(checkpoint.tensors[f"lang_encoder.{TABLES[family]}"])
    # Otter's configurations of 2023 spell out generation settings (max_length 20, and for MPT no
    # cache) and where their weights once lay; neither says anything of the model.
    settings = {name for name in vars(GenerationConfig()) if not name.endswith("_token_id")}
    settings |= {"_name_or_path", "architectures", "torch_dtype", "transformers_version"}
    text, vision = (
        {name: value for name, value in part.items() if name not in settings}
        for part in (text, vision)
    )
    vision["model_type"] = "clip_vision_model"
    return text, vision


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


def _media_mode(config: Mapping[str, Any]) -> tuple[str, str]:
    # Only the intermediate "flamingo" classes of the Otter project read this setting.
    if config.get("model_type") == "flamingo" and config.get("only_attend_previous") is False:
        return "next-v1", "only_attend_previous is false in config.json"
    return "previous", "Otter attends to the image before each token, whatever config.json says"


def _fate(name: str, family: str) -> Key:
    """The fate of one key."""
    part, _, own = name.partition(".")
    if part == "vision_encoder":
        # transformers 5 has no such level; Otters were saved with 4.
        return _vision(name, own.removeprefix("vision_model."))
    if part == "perceiver":
        # Attention and feed-forward are one module in Otter, and two in a list here.
        own = re.sub(r"^(layers\.\d+)\.feed_forward\.", r"\1.1.", own)
        own = re.sub(r"^(layers\.\d+)\.(norm_|to_)", r"\1.0.\2", own)
        if PERCEIVER.fullmatch(own):
            return Key(name, "used", f"perceiver.{own}")
    if part == "lang_encoder":
        return _lang(name, own, family)
    return Key(name, "unexpected", reason="no such weight in an Otter")


def _vision(name: str, own: str) -> Key:
    if own == "embeddings.position_ids":
        return Key(name, "dropped", reason="a buffer that is computed")
    if VISION.fullmatch(own):
        return Key(name, "used", f"vision_encoder.{own}")
    return Key(name, "unexpected", reason="no such weight in a CLIP vision tower")


def _lang(name: str, own: str, family: str) -> Key:
    # Names under which OpenFlamingo registers the same modules again.
    if own.startswith(("gated_cross_attn_layers.", "old_decoder_blocks.")):
        return Key(name, "dropped", reason="another name for weights of the decoder layers")
    if own.endswith(".rotary_emb.inv_freq"):
        return Key(name, "dropped", reason="a buffer that is computed")
    inside = re.fullmatch(rf"{re.escape(LAYERS[family])}\.(\d+)\.(\w+)\.(.+)", own)
    if inside and inside[2] == "gated_cross_attn_layer":
        weight = re.sub(r"^feed_forward\.", "ff.", inside[3])
        if GATED.fullmatch(weight):
            target = f"lang_encoder.{LAYERS[family]}.{inside[1]}.{inside[2]}.{weight}"
            return Key(name, "used", target)
    elif inside and inside[2] == "decoder_layer":
        if re.fullmatch(rf"(?:{LAYER_WEIGHTS[family]})\.weight", inside[3]):
            return Key(name, "used", name)
    elif re.fullmatch(rf"(?:{OTHER_WEIGHTS[family]})\.weight", own):
        return Key(name, "used", name)
    return Key(name, "unexpected", reason=f"no such weight in a {family} language model")


def _gated_layers(tensors: Mapping[str, Tensor], family: str) -> list[int]:
    pattern = (
        rf"lang_encoder\.{re.escape(LAYERS[family])}\.(\d+)\.gated_cross_attn_layer\.attn_gate"
    )
    return sorted(int(found[1]) for found in (re.fullmatch(pattern, n) for n in tensors) if found)


def _numbers(tensors: Mapping[str, Tensor], family: str) -> dict[str, int]:
    """Fields of `FlamingoConfig` that the shapes tell."""
    depths = (re.match(r"perceiver\.layers\.(\d+)\.", name) for name in tensors)
    latents = tensors["perceiver.latents"]
    numbers = {
        "perceiver_depth": 1 + max(int(found[1]) for found in depths if found),
        "perceiver_latents": latents.shape[0],
        "perceiver_heads": HEADS,
        "cross_attn_heads": HEADS,
    }
    gated = rf"lang_encoder\.{re.escape(LAYERS[family])}\.\d+\.gated_cross_attn_layer\."
    for name, tensor in tensors.items():
        if re.fullmatch(r"perceiver\.layers\.0\.(?:0\.)?to_q\.weight", name):
            numbers["perceiver_dim_head"] = tensor.shape[0] // HEADS
        elif re.fullmatch(r"perceiver\.layers\.0\.(?:feed_forward|1)\.1\.weight", name):
            numbers["ff_mult"] = tensor.shape[0] // latents.shape[1]
        elif re.fullmatch(gated + r"attn\.to_q\.weight", name):
            numbers["cross_attn_dim_head"] = tensor.shape[0] // HEADS
    return numbers


def _facts(checkpoint: Checkpoint, layout: Layout) -> list[str]:
    facts = [
        "tokens after the base vocabulary: <|endofchunk|>, <image>, <answer>, then <PAD> where "
        "the tokenizer has no pad token",
        "the whole model is in the file: no other weights are needed",
    ]
    name = (_config(checkpoint).get("text_config") or {}).get("_name_or_path")
    usual = {"llama": "LLaMA-7B", "mpt": "mosaicml/mpt-7b-instruct"}[layout.family]
    origin = f"{name} in config.json" if name else usual
    facts.append(f"tokenizer: of the base language model ({origin}), if the directory holds none")
    return facts

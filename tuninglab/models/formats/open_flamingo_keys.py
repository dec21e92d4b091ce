"""The names in OpenFlamingo's checkpoints, v1 and v2, and what becomes of each of them."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

from tuninglab.errors import UserError
from tuninglab.models.formats.filling import same_bits
from tuninglab.models.formats.layout import Key
from tuninglab.models.formats.open_clip import clip_keys

LANG = "lang_encoder."
# The copies under which OpenFlamingo's modules list the layers a second time.
OLD_BLOCK = re.compile(r"old_decoder_blocks\.(\d+)\.(.+)")
GATED_ALIAS = re.compile(r"gated_cross_attn_layers\.(\d+)\.(.+)")
LAYER = re.compile(r"(.+)\.(\d+)\.(gated_cross_attn_layer|decoder_layer)\.(.+)")
# Buffers that models of these families kept in their state dict at some time.
BUFFER = re.compile(
    r"(?:.+\.)?(?:inv_freq|original_inv_freq|cos_cached|sin_cached|attn_bias|masked_bias|alibi"
    r"|(?:attn|attention|self_attn)\.bias|attn\.embed_positions|position_ids)"
)
# Weights outside the decoder layers, of all families: the conversion checks them against the model.
OUTSIDE = re.compile(
    r"(?:model|model\.decoder|transformer|gpt_neox)\.(?:embed_\w+|emb_\w+|wte|wpe|word_embeddings"
    r"|word_embeddings_layernorm|norm|norm_f|ln_f|final_layer_norm|final_layernorm|project_(?:in|out))"
    r"\.(?:weight|bias)|lm_head\.(?:weight|bias)"
)
BLOCK_WEIGHTS = (
    *("attn_gate", "ff_gate", "attn.norm.weight", "attn.norm.bias", "attn.to_q.weight"),
    *("attn.to_kv.weight", "attn.to_out.weight"),
    *("ff.0.weight", "ff.0.bias", "ff.1.weight", "ff.3.weight"),
)
PERCEIVER_OUTSIDE = ("latents", "norm.weight", "norm.bias")
PERCEIVER_LAYER = (
    *("0.norm_media.weight", "0.norm_media.bias", "0.norm_latents.weight", "0.norm_latents.bias"),
    *("0.to_q.weight", "0.to_kv.weight", "0.to_out.weight"),
    *("1.0.weight", "1.0.bias", "1.1.weight", "1.3.weight"),
)
TOWER_LAYER_WEIGHTS = 16  # weights and biases of q, k, v, out, two norms and two linears


def fates(tensors: Mapping[str, Tensor], path: str) -> list[Key]:
    """The fate of every key of a file whose decoder layers are at `path`, in its order.

    Raises:
        UserError: two copies of a weight differ, or the vision tower is of another kind.
    """
    tower: dict[str, list[Key]] = {}
    for key in _tower(tensors):
        tower.setdefault(key.name, []).append(key)
    return [key for name in tensors for key in tower.get(name) or [_fate(name, path, tensors)]]


def missing(source: Mapping[str, Tensor], path: str, layers: list[int]) -> list[Key]:
    """What a Perceiver and the gated blocks of `layers` need and `source`, by target, has not."""
    numbers = [int(n.split(".")[2]) for n in source if n.startswith("perceiver.layers.")]
    wanted = [f"perceiver.{name}" for name in PERCEIVER_OUTSIDE]
    wanted += [
        f"perceiver.layers.{number}.{name}"
        for number in range(max(numbers, default=0) + 1)
        for name in PERCEIVER_LAYER
    ]
    wanted += [
        f"{LANG}{path}.{number}.gated_cross_attn_layer.{name}"
        for number in layers
        for name in BLOCK_WEIGHTS
    ]
    reason = "every checkpoint of OpenFlamingo has it"
    return [Key(name, "missing", reason=reason) for name in wanted if name not in source]


def _fate(name: str, path: str, tensors: Mapping[str, Tensor]) -> Key:
    part, _, own = name.partition(".")
    if part == "lang_encoder":
        return _lang(name, own, path, tensors)
    reason = "OpenFlamingo has no such part"
    if part == "perceiver":
        if in_perceiver(own):
            return Key(name, "used", name)
        reason = "no such weight in a Perceiver"
        if own in ("frame_embs", "media_time_embs"):
            reason = "embeddings of frames and times, which the Perceiver here does not have"
    return Key(name, "unexpected", reason=reason)


def in_perceiver(own: str) -> bool:
    """Whether a Perceiver has a weight of this name."""
    return own in PERCEIVER_OUTSIDE or re.sub(r"^layers\.\d+\.", "", own) in PERCEIVER_LAYER


def _lang(name: str, own: str, path: str, tensors: Mapping[str, Tensor]) -> Key:
    if BUFFER.fullmatch(own):
        return Key(name, "dropped", reason="a buffer that the language model computes")
    alias, reason = None, "another name for the weights of the decoder layers"
    if found := OLD_BLOCK.fullmatch(own):
        alias = f"{LANG}{path}.{found[1]}.decoder_layer.{found[2]}"
    elif found := GATED_ALIAS.fullmatch(own):
        alias = f"{LANG}{path}.{found[1]}.gated_cross_attn_layer.{found[2]}"
    elif own.startswith("embed_out."):
        # transformers' GPT-NeoX had the head under this name.
        alias = f"{LANG}lm_head.{own.removeprefix('embed_out.')}"
        reason = "another name for lm_head"
    if alias is not None and alias in tensors:
        if not same_bits(tensors[name], tensors[alias]):
            raise UserError(
                f"{name} and {alias} are two names for one weight, but they differ in the file: it "
                "was put together from two models. Remove the copy that is not of the trained one"
            )
        return Key(name, "dropped", reason=reason)
    target = alias or name
    if in_language_model(target.removeprefix(LANG), path):
        return Key(name, "used", target)
    return Key(name, "unexpected", reason="no such weight in an OpenFlamingo")


def in_language_model(own: str, path: str) -> bool:
    """Whether a language model with gated blocks, and its layers at `path`, has such a weight."""
    found = LAYER.fullmatch(own)
    if not found:
        return bool(OUTSIDE.fullmatch(own))
    if found[1] != path:
        return False
    # Weights of a decoder layer are checked against the model that is given.
    return found[3] == "decoder_layer" or found[4] in BLOCK_WEIGHTS


def _tower(tensors: Mapping[str, Tensor]) -> list[Key]:
    """Keys of CLIP: used if the whole vision tower is there, as load_state_dict would do."""
    names = [name for name in tensors if name.startswith("vision_encoder.")]
    keys = clip_keys(names, "vision_encoder.")
    if _is_whole(key.target for key in keys if key.target):
        return keys
    reason = "a part of a vision tower, which --vision_encoder gives as a whole"
    # A fused weight was three keys, and is dropped as one.
    dropped = (Key(k.name, "dropped", reason=reason) if k.fate == "used" else k for k in keys)
    return list(dict.fromkeys(dropped))


def _is_whole(targets: Iterable[str]) -> bool:
    layers, outside = Counter[str](), 0
    for target in targets:
        found = re.match(r"vision_encoder\.encoder\.layers\.(\d+)\.", target)
        if found:
            layers[found[1]] += 1
        else:
            outside += 1
    # Class, patch and position embedding, and two norms of two.
    return outside == 7 and set(layers.values()) == {TOWER_LAYER_WEIGHTS}

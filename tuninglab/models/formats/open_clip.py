"""OpenCLIP's vision towers: the names of their weights, their configuration, and loading one."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel
from transformers.image_utils import PILImageResampling
from transformers.utils import logging

from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.models.formats.filling import misfits
from tuninglab.models.formats.layout import MOST_LAYERS, Key
from tuninglab.models.formats.reading import read_checkpoint, read_object

CONFIG_NAME = "open_clip_config.json"
# Names that open_clip's push_to_hub and the released repositories use.
WEIGHT_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TARGET = "vision_encoder."

# open_clip's name -> transformers 5.23's, from the two projects' module definitions; "pre_layrnorm"
# is spelled so there.
PARAMETERS = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
}
NORMS = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}
IN_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
THIRDS = ("q_proj", "k_proj", "v_proj")

FOREIGN_TOWERS = {
    "trunk.": "a timm tower",
    "attnpool.": "a ModifiedResNet",
    "layer1.": "a ModifiedResNet",
    "attn_pool.": "a CoCa tower with attentional pooling",
}


def tower_keys(names: Iterable[str], prefix: str = "") -> list[Key]:
    """The fate of every key of a visual tower; a fused `in_proj` gives three keys.

    Args:
        names: keys in the file; those without the prefix are left out.
        prefix: what stands before the tower's own names, e.g. "vision_encoder.".

    Raises:
        UserError: it is no plain vision transformer.
    """
    own = [name for name in names if name.startswith(prefix)]
    for start, what in FOREIGN_TOWERS.items():
        found = [name for name in own if name.startswith(prefix + start)]
        if found:
            raise UserError(
                f"the vision tower is {what} ({found[0]}); expected a CLIP vision transformer "
                "such as ViT-L-14, the only kind that released Flamingos use"
            )
    return [key for name in own for key in _fate(name, name.removeprefix(prefix))]


def clip_keys(names: Iterable[str], prefix: str = "") -> list[Key]:
    """The fate of every key of a CLIP: the whole, its tower below `visual.`, or the tower alone.

    Raises:
        UserError: the tower is no plain vision transformer.
    """
    own = [name for name in names if name.startswith(prefix)]
    if f"{prefix}class_embedding" in own:
        return tower_keys(own, prefix)
    visual = f"{prefix}visual."
    # Text and vision share names (transformer.resblocks.0...): only the level tells them apart.
    reason = "CLIP's text side: a Flamingo uses its vision tower alone"
    text = [Key(name, "dropped", reason=reason) for name in own if not name.startswith(visual)]
    return [*tower_keys(own, visual), *text]


def tower_config(
    shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any] | None = None
) -> CLIPVisionConfig:
    """The configuration of a tower, from the shapes of its weights and its open_clip_config.json.

    What shapes cannot tell (heads, activation) is said.

    Args:
        shapes: shapes by the tower's own names.
        settings: the content of open_clip_config.json; None where there is none.

    Raises:
        UserError: weights are missing, or the tower cannot be a CLIP tower of transformers.
    """
    conv, positions = _shape(shapes, "conv1.weight", 4), _shape(shapes, "positional_embedding", 2)
    width, patch, grid = conv[0], conv[-1], round((positions[0] - 1) ** 0.5)
    if positions != (grid**2 + 1, width):
        raise UserError(
            f"positional_embedding is {positions}; expected (n * n + 1, {width}): CLIP towers of "
            "transformers take square images"
        )
    numbers = {int(found[1]) for found in map(LAYER.match, shapes) if found}
    if max(numbers, default=0) >= MOST_LAYERS:
        raise UserError(f"OpenCLIP tower: layer {max(numbers)} is there; no tower has so many")
    model = (settings or {}).get("model_cfg", settings or {})
    vision = model.get("vision_cfg", {})
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=_shape(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        num_hidden_layers=max(numbers) + 1,
        num_attention_heads=_heads(width, vision),
        image_size=grid * patch,
        patch_size=patch,
        hidden_act=_activation(model if settings else None, vision),
        layer_norm_eps=vision.get("norm_kwargs", {}).get("eps", 1e-5),
    )


def load_tower(path: str | Path) -> tuple[CLIPVisionModel, CLIPImageProcessorPil]:
    """A tower in evaluation mode with its image processor, from an OpenCLIP directory or file.

    Raises:
        UserError: there is no such tower, or it is incomplete or of another kind.
    """
    file, settings, checkpoint, own = _read(Path(path))
    with checkpoint.named():
        keys = tower_keys(own)
        config = tower_config(_shapes(own), settings)
        return _fill(config, keys, own, str(file)), _image_processor(config, settings)


def read_tower_config(path: str | Path) -> CLIPVisionConfig:
    """The configuration of a tower in an OpenCLIP directory or file.

    Raises:
        UserError: there is no such tower, or it is incomplete or of another kind.
    """
    _, settings, checkpoint, own = _read(Path(path))
    with checkpoint.named():
        return tower_config(_shapes(own), settings)


def _read(path: Path) -> tuple[Path, Any, Any, dict[str, Tensor]]:
    """The file, its settings, its checkpoint, and the tensors of the tower by its own names."""
    file = _weights_file(path) if path.is_dir() else path
    beside = file.parent / CONFIG_NAME
    settings = read_object(beside) if beside.is_file() else None
    checkpoint = read_checkpoint(file)
    tensors = checkpoint.tensors
    prefix = "visual." if any(name.startswith("visual.") for name in tensors) else ""
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return file, settings, checkpoint, own


def _shapes(own: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in own.items()}


def _fate(name: str, own: str) -> list[Key]:
    """The keys that one name of the file becomes; `own` is the name within the tower."""
    if own == "proj":
        return [Key(name, "dropped", reason="projection of CLIP's pooled output, unused here")]
    found = LAYER.fullmatch(own)
    if found:
        layer, inside = f"{TARGET}encoder.layers.{found[1]}.", found[2]
        if inside in ("attn.in_proj_weight", "attn.in_proj_bias"):
            end = inside.removeprefix("attn.in_proj_")
            return [
                Key(name, "used", f"{layer}self_attn.{part}.{end}", part=number)
                for number, part in enumerate(THIRDS)
            ]
        return [_renamed(name, inside, IN_LAYER, layer)]
    if own in PARAMETERS:
        return [Key(name, "used", TARGET + PARAMETERS[own])]
    return [_renamed(name, own, NORMS, TARGET)]


def _renamed(name: str, own: str, table: dict[str, str], before: str) -> Key:
    module, _, kind = own.rpartition(".")
    if module in table and kind in ("weight", "bias"):
        return Key(name, "used", f"{before}{table[module]}.{kind}")
    return Key(name, "unexpected", reason="no such weight in a CLIP vision transformer")


def _shape(own: Mapping[str, tuple[int, ...]], name: str, dimensions: int) -> tuple[int, ...]:
    shape = own.get(name)
    if shape is None or len(shape) != dimensions:
        found = "is missing" if shape is None else f"has shape {shape}"
        raise UserError(
            f"OpenCLIP tower: {name} {found}; expected the weights of a vision transformer "
            f"(class_embedding, conv1.weight, transformer.resblocks...), alone or below visual."
        )
    return shape


def _heads(width: int, vision: Mapping[str, Any]) -> int:
    if "head_width" in vision:
        return width // vision["head_width"]
    # open_clip's model configs: 64 wide heads up to ViT-L, 16 heads in ViT-H, -g, -bigG and -e.
    heads = width // 64 if width <= 1024 else 16
    if not vision:
        reason = f"as in open_clip's towers of width {width}; the file does not tell"
        Choices().add("attention heads of the vision tower", str(heads), reason)
    return heads


def _activation(model: Mapping[str, Any] | None, vision: Mapping[str, Any]) -> str:
    name, reason = "gelu", f"no quick_gelu in {CONFIG_NAME}"
    if model is None:
        name = "quick_gelu"
        reason = (
            "OpenAI's weights, which the released Flamingos use, need QuickGELU; for a tower with "
            f"plain GELU give a directory with {CONFIG_NAME}"
        )
    elif model.get("quick_gelu"):
        name, reason = "quick_gelu", f"quick_gelu in {CONFIG_NAME}"
    elif vision.get("act_kwargs", {}).get("approximate") == "tanh":
        name, reason = "gelu_pytorch_tanh", f"act_kwargs in {CONFIG_NAME}"
    return Choices().add("activation of the vision tower", name, reason)


def _weights_file(directory: Path) -> Path:
    for name in WEIGHT_NAMES:
        if (directory / name).is_file():
            return directory / name
    raise UserError(
        f"{directory} holds no OpenCLIP weights; expected {' or '.join(WEIGHT_NAMES)}. "
        "A file of another name can be given itself"
    )


def _fill(
    vision_config: CLIPVisionConfig, keys: list[Key], tensors: Mapping[str, Tensor], where: str
) -> CLIPVisionModel:
    state = {key.target.removeprefix(TARGET): key.rows(tensors) for key in keys if key.target}
    with torch.device("meta"):
        expected = CLIPVisionModel(vision_config).state_dict()
    problems = [f"{key.name} is not known" for key in keys if key.fate == "unexpected"]
    problems += [f"{name} is missing" for name in expected if name not in state]
    problems += misfits({TARGET + name: t for name, t in expected.items()}, tensors, keys)
    if problems:
        raise UserError(
            f"{where} is no complete CLIP vision transformer: {'; '.join(problems[:8])}. Use the "
            "whole file of a ViT tower"
        )
    # Its bar would be gone before it can be read.
    logging.disable_progress_bar()
    dtype = next(iter(state.values())).dtype
    return CLIPVisionModel.from_pretrained(
        None, config=vision_config, state_dict=state, dtype=dtype
    ).eval()


def _image_processor(
    vision_config: CLIPVisionConfig, settings: Mapping[str, Any] | None
) -> CLIPImageProcessorPil:
    """CLIP's preprocessing at the tower's size, with what preprocess_cfg says of it."""
    said = (settings or {}).get("preprocess_cfg", {})
    side = vision_config.image_size
    square = {"height": side, "width": side}
    options: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": square}
    mode = said.get("resize_mode", "shortest")
    if mode == "squash":
        options = {"size": square, "do_center_crop": False}
    elif mode != "shortest":
        raise UserError(f"{CONFIG_NAME}: resize_mode is {mode!r}; expected shortest or squash")
    if said.get("interpolation") == "bilinear":
        options["resample"] = PILImageResampling.BILINEAR
    # open_clip's default mean and std are OpenAI's, as transformers' are.
    for ours, theirs in (("image_mean", "mean"), ("image_std", "std")):
        if theirs in said:
            options[ours] = list(said[theirs])
    return CLIPImageProcessorPil(**options)

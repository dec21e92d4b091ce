"""A vision tower and its image processor, from disk or hub."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from tuninglab.errors import UserError
from tuninglab.models.formats.open_clip import CONFIG_NAME, load_tower, read_tower_config
from tuninglab.models.hub import resolve
from tuninglab.models.parts import explained, load_weights, read_config
from tuninglab.models.towers import KNOWN, TOWERS, WHOLE, picture_size
from tuninglab.models.trial import try_pictures

# Newer saves of a whole model keep the image processor in the second.
IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_vision_encoder(
    path_or_id: str | Path, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, Any]:
    """A vision tower with its image processor; of OpenCLIP if no config.json is there.

    Raises:
        UserError: there is none, it is damaged, of another kind, or its image processor makes
            pictures that it cannot take.
    """
    if (path := _open_clip_path(path_or_id)) is not None:
        vision, image_processor = load_tower(path)
        # pyright takes the decorated `to` for a plain function.
        return vision.to(dtype) if dtype else vision, image_processor  # pyright: ignore
    where, local = resolve(path_or_id, "vision tower")
    config, whole = _tower_config(where, local)
    image_processor = load_image_processor(where, local, config)
    check_pictures(image_processor, config, where)
    return load_weights(
        AutoModel,
        "vision tower",
        where,
        local,
        dtype,
        surplus=whole,
        hint="Use a complete save of the tower, with the config.json that belongs to it",
        config=config,
    ), image_processor


def read_vision_config(path_or_id: str | Path) -> Any:
    """The configuration of a vision tower; its weights are not read.

    Raises:
        UserError: there is none, it is damaged, or of another kind.
    """
    if (path := _open_clip_path(path_or_id)) is not None:
        return read_tower_config(path)
    return _tower_config(*resolve(path_or_id, "vision tower"))[0]


def _open_clip_path(path_or_id: str | Path) -> Path | None:
    """Where a tower of OpenCLIP is; None where it is none of OpenCLIP."""
    path = Path(path_or_id).expanduser()
    is_tower_file = path.is_file() and path.name != "config.json"
    is_folder = (path / CONFIG_NAME).is_file() and not (path / "config.json").is_file()
    return path if is_tower_file or is_folder else None


def _tower_config(where: str, local: bool) -> tuple[Any, bool]:
    """The configuration of a tower, and whether it lies in that of a whole model.

    A whole model holds a text tower besides, which has no place here.
    """
    config = read_config(where, local, "vision tower")
    whole = config.model_type in WHOLE
    config = config.vision_config if whole else config
    if config.model_type not in TOWERS:
        raise UserError(f"{where} holds a {config.model_type!r} model; {KNOWN}")
    return config, whole


def load_image_processor(where: str, local: bool, config: Any) -> Any:
    """The image processor beside a tower, or the usual one for square pictures of its size.

    Args:
        where: a directory or hub id, as `resolve` gave it.
        local: whether it is a directory.
        config: of the tower.

    Raises:
        UserError: its file is damaged.
    """
    kind, side = TOWERS[config.model_type], config.image_size
    if local and not any((Path(where) / name).exists() for name in IMAGE_PROCESSOR_FILES):
        crops = getattr(kind.pictures, "do_center_crop", False)
        square = {"height": side, "width": side}
        sizes = (
            {"size": {"shortest_edge": side}, "crop_size": square} if crops else {"size": square}
        )
        return kind.pictures(**kind.settings, **sizes)
    with explained("image processor", where):
        said, _ = kind.pictures.get_image_processor_dict(where, local_files_only=local)
        return kind.pictures.from_dict(kind.settings | said)


def check_pictures(image_processor: Any, config: Any, where: str) -> None:
    """Pass if an image processor makes the pictures that a tower of this configuration takes.

    Raises:
        UserError: they are of another size, or it breaks on a picture.
    """
    with explained("image processor", where):
        side = picture_size(image_processor)
        try_pictures(image_processor, side)
    if side != config.image_size and not TOWERS[config.model_type].any_size:
        raise UserError(
            f"{where}: the image processor makes pictures of {side} x {side} pixels, but the tower "
            f"takes {config.image_size} x {config.image_size}. Correct "
            f"{' or '.join(IMAGE_PROCESSOR_FILES)}"
        )

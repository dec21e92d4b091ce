"""The kinds of vision tower a Flamingo can see through: their patches and their pictures."""

from typing import Any, NamedTuple

from torch import Tensor
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil
from transformers.image_utils import PILImageResampling
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

IMAGENET = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}


class Tower(NamedTuple):
    """A kind of vision tower.

    Attributes:
        pictures: class of its image processor, without torchvision.
        settings: of that, where its directory leaves them open and the class means others.
        class_token: whether its states begin with one.
        any_size: whether it interpolates its positions, and so takes pictures of any size.
        unused: a module or parameter that no patch depends on.
    """

    pictures: type
    settings: dict[str, Any]
    class_token: bool
    any_size: bool
    unused: str


# By the model_type of vision_config. docs/models.md says for each why its patches are these.
TOWERS = {
    "clip_vision_model": Tower(CLIPImageProcessorPil, {}, True, False, "post_layernorm"),
    "siglip_vision_model": Tower(SiglipImageProcessorPil, {}, False, False, "head"),
    "dinov2": Tower(BitImageProcessorPil, IMAGENET, True, True, "mask_token"),
    "dinov2_with_registers": Tower(BitImageProcessorPil, IMAGENET, True, True, "mask_token"),
    # Its own image processor needs torchvision; SigLIP's does the same: a resize without a crop.
    "dinov3_vit": Tower(
        SiglipImageProcessorPil,
        {**IMAGENET, "resample": PILImageResampling.BILINEAR},
        True,
        True,
        "mask_token",
    ),
}
# Models with a text tower besides; vision_config says which of the above is in them.
WHOLE = ("clip", "siglip")
KNOWN = (
    f"the vision towers of a Flamingo are {', '.join(TOWERS)}, alone or in a whole "
    f"{' or '.join(WHOLE)} (SigLIP 2 of one image size is of type siglip; siglip2, its NaFlex, "
    "takes patches of pictures of any shape)"
)


def patches_of(states: Tensor, config: Any) -> Tensor:
    """The patch features (N, P, D) among a tower's last hidden states (N, T, D).

    Args:
        states: as the tower's model in transformers gives them.
        config: of the tower.
    """
    # DINOv2 and DINOv3: the class token, the registers, the patches.
    before = TOWERS[config.model_type].class_token + getattr(config, "num_register_tokens", 0)
    return states[:, before:]


def picture_size(image_processor: Any) -> int:
    """Pixels of a side of the pictures that an image processor makes.

    Raises:
        ValueError: they are not square, or of more than one size.
    """
    cropped = getattr(image_processor, "do_center_crop", False)
    size: Any = image_processor.crop_size if cropped else image_processor.size
    if not size.height or size.height != size.width or not (cropped or image_processor.do_resize):
        raise ValueError(
            f"the image processor makes pictures of size {size} (cropped: {bool(cropped)}); a "
            "Flamingo takes square ones of one size: give size or crop_size a height and a width "
            "that are equal"
        )
    return size.height

"""Pictures that are scored more than once, encoded once: what frozen parts make of them is kept."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tuninglab.models.encoding import VISION_GROUP
from tuninglab.training.hardware import free_memory_bytes

# Of all features kept: 1,000 pictures of an OpenFlamingo (64 latents of 1024 numbers) in bf16 are
# half of it.
MOST_BYTES = 2**28
# Of the memory that is free once the model is loaded: 40,000 such pictures take 5 GiB.
SHARE = 1 / 8


class EncodedPictures:
    """Features of pictures by their pixels, for the life of a run whose frozen parts stay the same.

    A run answers the same questions before and after, and again with exchanged pictures. Two
    pictures of the same pixels are one: nothing is told from names or files.

    Args:
        most_bytes: kept at most; pictures beyond are encoded each time.
        group: pictures encoded at a time, filled up with empty ones, so that what comes of a
            picture does not depend on which others are new with it, to the last bit; None: all that
            are new, which is quicker where that does not matter.
    """

    def __init__(self, most_bytes: int = MOST_BYTES, group: int | None = None):
        self.left = most_bytes
        self.group = group
        self.kept: dict[tuple[str, bytes], Tensor] = {}

    @classmethod
    def repeatable(cls, device: torch.device, batch_size: int) -> "EncodedPictures":
        """Of a share of the memory that is free; a picture's features are the same in any company.

        Args:
            device: that encodes.
            batch_size: of the questions: of fewer than a group, no more pictures are encoded
                together, which would be empty.
        """
        # Of embedded pictures one takes 5.1 ms alone and 2.1 ms in a group of 8 (one CPU core).
        most_bytes = max(MOST_BYTES, int(SHARE * free_memory_bytes(device)))
        return cls(most_bytes, min(VISION_GROUP, batch_size))

    def encoded(self, model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of `generate` whose pixel_values (B, M, F, 3, H, W) are features instead.

        Latents where the Perceiver is frozen too, patches where it trains. Without pictures, and
        where the tower trains, the inputs as they are.
        """
        pixels = inputs.get("pixel_values")
        if pixels is None or not pixels.numel() or _trains(model.vision_encoder):
            return dict(inputs)
        name = "patch_features" if _trains(model.perceiver) else "image_features"
        encode = model.encode_patches if _trains(model.perceiver) else model.encode_images
        media = pixels.flatten(0, 1)
        keys = [(name, _digest(medium)) for medium in media]
        # Each once, in the order of the batch.
        new = {key: number for number, key in enumerate(keys) if key not in self.kept}
        rows: dict[tuple[str, bytes], Tensor] = {}
        if new:
            found = self._encoded(encode, media[list(new.values())].unsqueeze(1)).squeeze(1)
            rows = dict(zip(new, found, strict=True))
        features = torch.stack([self.kept[k] if k in self.kept else rows[k] for k in keys])
        for key, row in rows.items():
            if row.nbytes <= self.left:
                # A copy, or the whole batch would be kept with it.
                self.kept[key] = row.clone()
                self.left -= row.nbytes
        rest = {key: value for key, value in inputs.items() if key != "pixel_values"}
        return rest | {name: features.unflatten(0, pixels.shape[:2])}

    def _encoded(self, encode: Callable[[Tensor], Tensor], media: Tensor) -> Tensor:
        """What encode makes of media (N, 1, F, 3, H, W), in groups of one size if asked."""
        if self.group is None:
            return encode(media)
        made = []
        for group in media.split(self.group):
            empty = self.group - len(group)
            made.append(encode(F.pad(group, (0, 0) * 5 + (0, empty)))[: len(group)])
        return torch.cat(made)


def _trains(module: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _digest(medium: Tensor) -> bytes:
    data = medium.cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(data.data).digest()

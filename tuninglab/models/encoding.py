"""How a Flamingo sees: pixels to patches by its tower, patches to latents by its Perceiver."""

from typing import Any

import torch
from torch import Tensor, nn

from tuninglab.models.conditioning import sees_image
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.perceiver import with_frames
from tuninglab.models.towers import patches_of

# Images that frozen parts encode at a time: what they hold of them does not grow with a prompt's
# images, and stays in the memory that the process has already. On 2 CPU cores 16 images of 224 px
# took 1.13 s at once, 1.01 s in groups of 8 (fp32).
VISION_GROUP = 8


class ImageEncodingMixin:
    """Images of a Flamingo, which has what is declared here, as patch features and as latents."""

    config: FlamingoConfig
    vision_encoder: Any
    perceiver: Any

    def encode_patches(self, pixel_values: Tensor) -> Tensor:
        """Pixels (B, M, F, 3, H, W) or (B, M, 3, H, W) -> patch features (B, M, F, P, D).

        Features are a tower's `last_hidden_state` without class and register tokens: of CLIP before
        post_layernorm, as OpenFlamingo was trained (open_clip <= 2.22), of others after their last
        norm. A frozen tower records no gradient.

        Raises:
            ValueError: the shape is another one.
        """
        pixel_values = with_frames(pixel_values)
        # Decided by the weights and not by a setting, so unfreezing a part of the tower is enough.
        trained = _trains(self.vision_encoder)
        flat = pixel_values.flatten(0, 2).to(self.vision_encoder.dtype)
        # Without a gradient nothing is kept of a group of images once the next one is encoded.
        groups = [flat] if trained else flat.split(VISION_GROUP)
        with torch.set_grad_enabled(trained):
            features = [self.vision_encoder(pixel_values=group) for group in groups]
        states = torch.cat([found.last_hidden_state for found in features])
        return patches_of(states, self.config.vision_config).unflatten(0, pixel_values.shape[:3])

    def encode_images(
        self,
        pixel_values: Tensor | None = None,
        seen: Tensor | None = None,
        patch_features: Tensor | None = None,
    ) -> Tensor:
        """Pixels (B, M, F, 3, H, W) or (B, M, 3, H, W) -> latents (B, M, L, D).

        Or from patch_features (B, M, F, P, D) instead of pixels. Images that are not `seen` (B, M)
        are padding: they are not encoded and come out as 0.

        Raises:
            ValueError: neither is given, or the shape of pixel_values is another one.
        """
        if patch_features is None and pixel_values is None:
            raise ValueError("neither pixel_values nor patch_features are given; give one")
        given = patch_features is not None
        images: Tensor = patch_features if given else with_frames(pixel_values)  # pyright: ignore
        # Reading `seen` would break a compiled graph.
        if seen is None or torch.compiler.is_compiling():
            return self._latents(images.flatten(0, 1), given).unflatten(0, images.shape[:2])
        # Where nothing is seen, one image is encoded all the same: trained parameters that took
        # part on one rank only would hang DDP.
        seen = seen.clone()
        seen[:1, :1] |= ~seen.any()
        latents = self._latents(images[seen], given)
        padded = latents.new_zeros(*seen.shape, *latents.shape[1:])
        padded[seen] = latents
        return padded

    def encode_seen(
        self,
        text_time: Tensor,
        pixel_values: Tensor | None = None,
        patch_features: Tensor | None = None,
    ) -> Tensor:
        """Latents (B, M, L, D) of the images that some token of text_time (B, T) sees."""
        images: Any = pixel_values if patch_features is None else patch_features
        seen = sees_image(text_time, images.shape[1]).any(1)
        return self.encode_images(pixel_values, seen, patch_features)

    def _latents(self, media: Tensor, are_patches: bool) -> Tensor:
        """Media (N, F, 3, H, W), or their patches (N, F, P, D), -> latents (N, L, D)."""
        trained = _trains(self.perceiver) or _trains(self.vision_encoder)
        groups = [media] if trained else media.split(VISION_GROUP)
        with torch.set_grad_enabled(trained):
            rows = (group.unsqueeze(1) for group in groups)
            patches = (row if are_patches else self.encode_patches(row) for row in rows)
            # By format alone: the weights may be elsewhere until the module is called.
            dtype = self.perceiver.latents.dtype
            encoded = [self.perceiver(found.to(dtype)) for found in patches]
        return torch.cat(encoded).squeeze(1)


def _trains(module: nn.Module) -> bool:
    """Whether a gradient is to reach the weights of a module."""
    return torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())

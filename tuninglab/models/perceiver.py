"""The Perceiver resampler: any number of image patches in, a fixed number of latents out."""

import torch
from torch import Tensor, nn

from tuninglab.kernels.attention import attend


def feed_forward(width: int, mult: int) -> nn.Sequential:
    """Norm, up, exact GELU, down, without biases; its state-dict names are OpenFlamingo's."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, width * mult, bias=False),
        nn.GELU(),
        nn.Linear(width * mult, width, bias=False),
    )


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads * D) -> (B, heads, T, D), the order that attention takes."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def with_frames(pixel_values: Tensor) -> Tensor:
    """Pixels (B, M, F, 3, H, W) of (B, M, 3, H, W), whose media are films of one frame.

    Raises:
        ValueError: the shape is another one.
    """
    if pixel_values.ndim not in (5, 6) or pixel_values.shape[-3] != 3:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; expected "
            "(rows, images, frames, 3, height, width) or (rows, images, 3, height, width)"
        )
    return pixel_values if pixel_values.ndim == 6 else pixel_values.unsqueeze(2)


class PerceiverAttention(nn.Module):
    """Latents attend to the patches of their image and to themselves."""

    def __init__(self, width: int, dim_head: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, width, bias=False)

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        """Patches (B, P, D) and latents (B, L, D) -> update of the latents (B, L, D)."""
        latents = self.norm_latents(latents)
        # Media first, then latents: a trained checkpoint does not depend on the order, but the
        # sum of floats does, and parity is tested to 1e-4 of OpenFlamingo 2.0.1.
        source = torch.cat([self.norm_media(media), latents], dim=1)
        key, value = self.to_kv(source).chunk(2, dim=-1)
        query = split_heads(self.to_q(latents), self.heads)
        # Its default scale, dim_head ** -0.5, is OpenFlamingo's.
        attended = attend(query, split_heads(key, self.heads), split_heads(value, self.heads))
        return self.to_out(attended.transpose(1, 2).flatten(2))


class PerceiverResampler(nn.Module):
    """Patches of images or clips -> `latents` vectors a medium (OpenFlamingo 2.0.1, helpers.py).

    Frames of a clip are laid side by side; as in the released checkpoints there are no frame or
    position embeddings.
    """

    def __init__(
        self, width: int, depth: int, latents: int, heads: int, dim_head: int, ff_mult: int
    ):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [PerceiverAttention(width, dim_head, heads), feed_forward(width, ff_mult)]
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, M, F, P, D) -> (B, M, L, D)."""
        batch, media_count = patches.shape[:2]
        # Media become batch rows: an image is resampled on its own, whatever stands beside it.
        media = patches.flatten(2, 3).flatten(0, 1)
        latents = self.latents.expand(batch * media_count, -1, -1)
        for attention, feed in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            latents = latents + attention(media, latents)
            latents = latents + feed(latents)
        # The norm last: FSDP asks that what a module gives is no view.
        return self.norm(latents.unflatten(0, (batch, media_count)))

"""Drawings for pre-training: on papers of any colour, turned, mirrored, tinted, blurred.

What a user brings looks like nothing here; the wider the pre-training, the more of it is seen.
"""

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from tuninglab.embedded.drawings import (
    Drawing,
    DrawingScene,
    asked_about,
    drawings,
    sample_drawings,
)
from tuninglab.embedded.scenes import SIDE_PX

# Half of what is shown are things of everyday life, which are a quarter of all drawings: the others
# are flags, signs, and people and hands in six skins.
EVERYDAY_SHARE, CROWDED_SHARE = 0.5, 0.2
CROWDED = ("person", "hand", "flag", "body part")


@dataclass(frozen=True)
class VariedDrawings(DrawingScene):
    """A picture of drawings, each changed in look but not in what it shows."""

    def paper(self, rng: np.random.Generator) -> Image.Image:
        """Pale or of any colour, even or from one colour to another, with more or less grain."""
        if rng.random() < 0.4:
            return super().paper(rng)
        low = 0 if rng.random() < 0.5 else 160
        first, last = rng.integers(low, 256, (2, 3))
        if rng.random() < 0.5:
            last = first
        across = np.linspace(0, 1, SIDE_PX)[:, None] * np.ones((1, SIDE_PX))
        across = (across if rng.random() < 0.5 else across.T)[:, :, None]
        grain = rng.normal(0, rng.choice((0, 3, 12)), (SIDE_PX, SIDE_PX, 1))
        paper = first * (1 - across) + last * across + grain
        return Image.fromarray(paper.clip(0, 255).astype(np.uint8))

    def cut(self, drawing: Drawing, rng: np.random.Generator) -> Image.Image:
        """Mirrored where nothing can be read on it, turned a little, in other light."""
        cut = drawing.cut()
        if (
            drawing.kind not in ("key", "clock", "arrow", "flag", "road sign", "")
            and rng.random() < 0.5
        ):
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.5:
            cut = cut.rotate(float(rng.uniform(-18, 18)), Image.Resampling.BICUBIC, expand=True)
        if rng.random() < 0.5:
            alpha = cut.getchannel("A")
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                cut = enhance(cut).enhance(float(rng.uniform(0.7, 1.3)))
            cut.putalpha(alpha)
        if rng.random() < 0.2:
            cut = cut.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.2))))
        return cut


@cache
def seen_drawings() -> tuple[tuple[Drawing, ...], ...]:
    """What training may show: things of everyday life, the crowded kinds, and all others."""
    everyday = asked_about(held_out=False)
    rest = [d for d in drawings() if not d.held_out and d not in everyday]
    crowded = tuple(d for d in rest if d.kind in CROWDED)
    return everyday, crowded, tuple(d for d in rest if d.kind not in CROWDED)


def sample_varied_drawings(rng: random.Random) -> VariedDrawings:
    """Content as in tuning, varied in look."""
    shares = EVERYDAY_SHARE, CROWDED_SHARE, 1 - EVERYDAY_SHARE - CROWDED_SHARE
    (among,) = rng.choices(seen_drawings(), shares)
    plain = sample_drawings(rng, among)
    return VariedDrawings(plain.things, plain.seed)

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

# A quarter of what is shown are the few things that the task asks about, and a third others of
# everyday life; most drawings are flags, signs, and people and hands in six skins.
SHARES = {"asked": 0.25, "everyday": 0.35, "crowded": 0.15, "others": 0.25}
CROWDED = ("person", "hand", "flag", "body part")
EVERYDAY = (
    *("fruit", "vegetable", "dish", "sweet", "drink", "mammal", "bird", "sea animal", "bug"),
    *("flower", "plant", "land vehicle", "air vehicle", "water vehicle", "building", "clothing"),
    *("instrument", "sport", "tool", "device", "household item", "reptile"),
)


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
def seen_drawings() -> dict[str, tuple[Drawing, ...]]:
    """What training may show, by the names of SHARES."""
    groups: dict[str, list[Drawing]] = {name: [] for name in SHARES}
    for drawing in drawings():
        if drawing in asked_about(held_out=False):
            groups["asked"].append(drawing)
        elif not drawing.held_out and drawing.kind in EVERYDAY:
            groups["everyday"].append(drawing)
        elif not drawing.held_out:
            groups["crowded" if drawing.kind in CROWDED else "others"].append(drawing)
    return {name: tuple(found) for name, found in groups.items()}


def sample_varied_drawings(rng: random.Random) -> VariedDrawings:
    """Content as in tuning, varied in look."""
    (name,) = rng.choices(list(SHARES), list(SHARES.values()))
    plain = sample_drawings(rng, seen_drawings()[name])
    return VariedDrawings(plain.things, plain.seed)

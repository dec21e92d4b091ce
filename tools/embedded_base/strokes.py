"""Handwriting for pre-training: warped scans of the train writers, and digits from poly-lines."""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tuninglab.embedded.digits import DigitScene, Ink, sample_digits, scans

# Variants of each digit as poly-lines in a unit square (x to the right, y down).
STROKES: dict[int, list[list[list[tuple[float, float]]]]] = {
    0: [[[(0.5, 0.04), (0.2, 0.2), (0.12, 0.5), (0.2, 0.8), (0.5, 0.96), (0.8, 0.8), (0.88, 0.5),
          (0.8, 0.2), (0.5, 0.04)]]],
    1: [[[(0.3, 0.25), (0.52, 0.05), (0.5, 0.96)]], [[(0.5, 0.04), (0.5, 0.96)]],
        [[(0.3, 0.25), (0.52, 0.05), (0.5, 0.95)], [(0.25, 0.95), (0.75, 0.95)]]],
    2: [[[(0.15, 0.25), (0.33, 0.05), (0.65, 0.05), (0.82, 0.25), (0.68, 0.52), (0.15, 0.95),
          (0.88, 0.93)]]],
    3: [[[(0.15, 0.12), (0.5, 0.03), (0.8, 0.2), (0.7, 0.42), (0.4, 0.48), (0.75, 0.55),
          (0.85, 0.77), (0.5, 0.97), (0.12, 0.87)]]],
    4: [[[(0.66, 0.96), (0.66, 0.05), (0.1, 0.64), (0.92, 0.64)]],
        [[(0.25, 0.05), (0.15, 0.5), (0.85, 0.5)], [(0.7, 0.15), (0.65, 0.96)]]],
    5: [[[(0.82, 0.05), (0.25, 0.06), (0.2, 0.44), (0.55, 0.4), (0.82, 0.62), (0.75, 0.88),
          (0.4, 0.97), (0.12, 0.86)]]],
    6: [[[(0.7, 0.04), (0.35, 0.28), (0.17, 0.65), (0.3, 0.93), (0.65, 0.95), (0.82, 0.72),
          (0.6, 0.52), (0.22, 0.64)]]],
    7: [[[(0.12, 0.07), (0.86, 0.07), (0.42, 0.96)]],
        [[(0.12, 0.07), (0.86, 0.07), (0.42, 0.96)], [(0.35, 0.5), (0.8, 0.5)]]],
    8: [[[(0.5, 0.48), (0.2, 0.28), (0.5, 0.03), (0.8, 0.28), (0.5, 0.48), (0.15, 0.75),
          (0.5, 0.97), (0.85, 0.75), (0.5, 0.48)]]],
    9: [[[(0.78, 0.3), (0.5, 0.5), (0.2, 0.3), (0.45, 0.05), (0.78, 0.2), (0.78, 0.3),
          (0.68, 0.96)]]],
}  # fmt: skip
CANVAS = 64


@dataclass(frozen=True)
class VariedDigits(DigitScene):
    """A digit picture in varied hands: three of four digits are warped scans, one is poly-lines."""

    def mask(self, ink: Ink, rng: np.random.Generator) -> np.ndarray:
        """Density of one digit, (8, 8) in 0..1."""
        if rng.random() < 0.25:
            return drawn(ink.digit, rng)
        return warped(scans(self.split)[0][ink.scan], rng)


def sample_varied_digits(rng: random.Random) -> VariedDigits:
    """Content as in tuning, from the train writers, shown in varied handwriting."""
    plain = sample_digits(rng, "train")
    return VariedDigits(plain.inks, plain.split, plain.seed)


def warped(scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A scan, (8, 8), turned, sheared, scaled and shifted a little, its ink thinner or thicker."""
    big = Image.fromarray((scan * 255).astype(np.uint8)).resize(
        (CANVAS, CANVAS), Image.Resampling.BICUBIC
    )
    angle, shear = rng.uniform(-0.22, 0.22), rng.uniform(-0.2, 0.2)
    sx, sy = rng.uniform(0.88, 1.15, 2)
    matrix = np.array(
        [[math.cos(angle), math.sin(angle) + shear], [-math.sin(angle), math.cos(angle)]]
    ) / [sx, sy]
    offset = CANVAS / 2 - matrix @ (np.full(2, CANVAS / 2) + rng.uniform(-4, 4, 2))
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    turned = big.transform(
        big.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    small = np.asarray(turned.resize((8, 8), Image.Resampling.BOX), np.float32) / 255
    return (small ** rng.uniform(0.7, 1.4)).clip(0, 1)


def drawn(digit: int, rng: np.random.Generator) -> np.ndarray:
    """A digit from one of its poly-lines, wobbled, smoothed and turned: (8, 8) in 0..1."""
    image = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(image)
    scale = rng.uniform(0.55, 0.85), rng.uniform(0.8, 0.95)
    shear, angle = rng.uniform(-0.25, 0.25), rng.uniform(-0.2, 0.2)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    variants = STROKES[digit]
    for line in variants[rng.integers(len(variants))]:
        points = smooth(np.array(line) + rng.normal(0, 0.035, (len(line), 2)))
        points = (points - 0.5) * scale
        points[:, 0] -= shear * points[:, 1]
        points = points @ turn * CANVAS * 0.9 + CANVAS / 2
        pen.line(
            [tuple(p) for p in points.tolist()],
            fill=255,
            width=int(rng.uniform(6, 12)),
            joint="curve",
        )
    return np.asarray(image.resize((8, 8), Image.Resampling.BOX), np.float32) / 255


def smooth(points: np.ndarray, rounds: int = 2) -> np.ndarray:
    """Corner cutting (Chaikin, 1974), the ends kept: (n, 2) -> (m, 2)."""
    for _ in range(rounds):
        near, far = 0.75 * points[:-1] + 0.25 * points[1:], 0.25 * points[:-1] + 0.75 * points[1:]
        between = np.stack([near, far], 1).reshape(-1, 2)
        points = np.concatenate([points[:1], between, points[-1:]])
    return points

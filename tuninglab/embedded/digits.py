"""Real handwriting: pictures of one to three inked digits, composed from scanned digits.

The scans, digits.npz, are the test set of the UCI "Optical recognition of handwritten digits" (see
NOTICE): 8 x 8 px, 17 grey levels. They lie in the order in which people filled in 14 forms, each
with the same sequence of about 130 digits, so whole forms can be kept apart: nobody in the test set
was ever seen before.
"""

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tuninglab.embedded.scenes import CELL_PX, COLORS, background, shade

INKS = tuple(c for c in COLORS if c != "yellow")  # yellow ink on pale paper cannot be read
PLACES = {1: ("center",), 2: ("left", "right"), 3: ("left", "middle", "right")}
# Where a form ends, found from the repeated digit sequence; the validation forms lie between train
# and test, so that a writer of two neighbouring forms could not be in both.
FORMS = {"train": (0, 1157), "val": (1157, 1415), "test": (1415, 1797)}


@dataclass(frozen=True)
class Ink:
    """One digit of a picture: its value, its colour, and which scan of the split shows it."""

    digit: int
    color: str
    scan: int


@dataclass(frozen=True)
class DigitScene:
    """Digits from left to right in one row, and the seed that fixes every pixel."""

    inks: tuple[Ink, ...]
    split: str
    seed: int

    def draw(self) -> Image.Image:
        """Render the digits as an RGB picture of 96 x 96 px."""
        rng = np.random.default_rng(self.seed)
        paper = np.asarray(background(rng), np.float32).copy()
        for cell, ink in zip(self.cells, self.inks, strict=True):
            stamp(paper, self.mask(ink, rng), ink.color, cell, rng)
        return Image.fromarray(paper.clip(0, 255).astype(np.uint8))

    def mask(self, ink: Ink, rng: np.random.Generator) -> np.ndarray:
        """How dense the ink lies, (8, 8) in 0..1: the scan as it is.

        Pre-training overrides this to vary it.
        """
        return scans(self.split)[0][ink.scan]

    @property
    def cells(self) -> list[int]:
        """Grid cells of the digits, left to right in one row."""
        rng = random.Random(self.seed)
        row = rng.randrange(3)
        return [3 * row + column for column in sorted(rng.sample(range(3), len(self.inks)))]

    @property
    def places(self) -> tuple[str, ...]:
        """The words for the digits' places, left to right."""
        return PLACES[len(self.inks)]


@cache
def scans(split: str) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The scans of a split, (N, 8, 8) in 0..1, and for every digit the indices that show it."""
    start, end = FORMS[split]
    with np.load(Path(__file__).with_name("digits.npz")) as held:
        images, targets = held["images"][start:end], held["targets"][start:end]
    images = images.astype(np.float32) / 16
    return images, tuple(np.flatnonzero(targets == digit) for digit in range(10))


def sample_digits(rng: random.Random, split: str, most: int = 3) -> DigitScene:
    """Draw a digit picture's content from the writers of `split`; no two digits share a colour."""
    count = rng.choice((1, 2, 2, 3, 3)[: 2 * most - 1])
    _, by_digit = scans(split)
    inks = []
    for color in rng.sample(INKS, count):
        digit = rng.randrange(10)
        inks.append(Ink(digit, color, int(rng.choice(by_digit[digit]))))
    return DigitScene(tuple(inks), split, rng.getrandbits(32))


def stamp(
    paper: np.ndarray, density: np.ndarray, color: str, cell: int, rng: np.random.Generator
) -> None:
    """Ink one digit, (h, w) in 0..1, onto the paper, (96, 96, 3), inside its grid cell."""
    side = int(rng.integers(27, CELL_PX + 1))
    mask = Image.fromarray((density * 255).astype(np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    alpha = np.asarray(mask, np.float32)[:, :, None] / 255
    slack = CELL_PX - side + 1
    x = CELL_PX * (cell % 3) + int(rng.integers(slack))
    y = CELL_PX * (cell // 3) + int(rng.integers(slack))
    area = paper[y : y + side, x : x + side]
    area[:] = area * (1 - alpha) + np.array(shade(color, rng), np.float32) * alpha

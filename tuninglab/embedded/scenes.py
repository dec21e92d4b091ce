"""Rendered scenes: one to three coloured shapes on a 3 x 3 grid, drawn from a seed."""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE_PX = 96
CELL_PX = (
    SIDE_PX // 3
)  # a cell is exactly 2 x 2 patches of 16 px: aligned objects are learned far sooner
COLORS = {
    "red": (214, 39, 40),
    "green": (44, 150, 44),
    "blue": (31, 90, 200),
    "yellow": (235, 200, 20),
    "purple": (140, 60, 180),
    "orange": (250, 130, 20),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = {"small": (5.8, 7.2), "large": (10.5, 12.5)}  # radius in px
CELLS = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
# Never drawn in any pre-training or tuning picture: the test asks about pairs the model has not
# met.
HELD_OUT_PAIRS = frozenset(
    {
        ("red", "star"),
        ("green", "circle"),
        ("blue", "cross"),
        ("purple", "triangle"),
        ("orange", "square"),
    }
)
OVERSAMPLE = 2  # shapes are drawn at twice the size and averaged down: smooth edges


@dataclass(frozen=True)
class Thing:
    """One object of a scene; `cell` counts the grid row by row from 0."""

    color: str
    shape: str
    size: str
    cell: int

    @property
    def name(self) -> str:
        """Colour and shape, as a question names the object."""
        return f"{self.color} {self.shape}"

    @property
    def place(self) -> str:
        """The grid cell in words."""
        return CELLS[self.cell]

    @property
    def held_out(self) -> bool:
        """True where colour and shape form a pair kept out of all training."""
        return (self.color, self.shape) in HELD_OUT_PAIRS


@dataclass(frozen=True)
class Scene:
    """Things in reading order, and the seed that fixes every pixel."""

    things: tuple[Thing, ...]
    seed: int

    def draw(self) -> Image.Image:
        """Render the scene as an RGB picture of 96 x 96 px."""
        rng = np.random.default_rng(self.seed)
        side = SIDE_PX * OVERSAMPLE
        picture = background(rng).resize((side, side), Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(picture)
        for thing in self.things:
            radius = rng.uniform(*SIZES[thing.size])
            x, y = (
                CELL_PX * (k + 0.5) + rng.uniform(-2.5, 2.5)
                for k in (thing.cell % 3, thing.cell // 3)
            )
            corners = outline(thing.shape, radius, rng.uniform(-0.15, 0.15))
            fill = shade(thing.color, rng)
            pen.polygon(
                [((x + u) * OVERSAMPLE, (y + v) * OVERSAMPLE) for u, v in corners], fill=fill
            )
        return picture.reduce(OVERSAMPLE)


def sample_scene(rng: random.Random, held_out: bool = False, most: int = 3) -> Scene:
    """Draw the content of a scene: never a held-out pair, or (`held_out`) at least one."""
    while True:
        count = rng.choice((1, 2, 2, 3, 3)[: 2 * most - 1])
        cells = sorted(rng.sample(range(9), count))
        things = [
            Thing(rng.choice(list(COLORS)), rng.choice(SHAPES), rng.choice(list(SIZES)), c)
            for c in cells
        ]
        if held_out and not any(t.held_out for t in things):
            k = rng.randrange(count)
            color, shape = rng.choice(sorted(HELD_OUT_PAIRS))
            things[k] = Thing(color, shape, things[k].size, things[k].cell)
        if held_out or not any(t.held_out for t in things):
            return Scene(tuple(things), rng.getrandbits(32))


def background(rng: np.random.Generator) -> Image.Image:
    """A pale, slightly noisy sheet of 96 x 96 px."""
    base = rng.integers(205, 256, 3)
    grain = rng.integers(-6, 7, (SIDE_PX, SIDE_PX, 1))
    return Image.fromarray((base + grain).clip(0, 255).astype(np.uint8))


def shade(color: str, rng: np.random.Generator) -> tuple[int, ...]:
    """The named colour, a little off: (red, green, blue) in 0..255."""
    return tuple(int(v) for v in (np.array(COLORS[color]) + rng.integers(-14, 15, 3)).clip(0, 255))


def outline(shape: str, radius: float, turn: float) -> list[tuple[float, float]]:
    """Corners of a shape around (0, 0), in px, turned by `turn` radians; sizes match by eye."""
    if shape == "cross":
        arm = 0.36 * radius
        rim = [(arm, -radius), (arm, -arm), (radius, -arm)]
        corners = [rotate(p, k * math.pi / 2) for k in range(4) for p in rim]
        return [rotate(p, turn) for p in corners]
    # (number of corners, radius of even corners, radius of odd corners, first angle, drop in y)
    count, outer, inner, first, drop = {
        "circle": (48, 1.0, 1.0, 0.0, 0.0),
        "square": (4, 1.15, 1.15, math.pi / 4, 0.0),
        "triangle": (3, 1.2, 1.2, -math.pi / 2, 0.15),
        "star": (10, 1.25, 0.5, -math.pi / 2, 0.0),
    }[shape]
    corners = []
    for k in range(count):
        x, y = rotate(
            (radius * (inner if k % 2 else outer), 0.0), first + k * 2 * math.pi / count + turn
        )
        corners.append((x, y + drop * radius))
    return corners


def rotate(point: tuple[float, float], angle: float) -> tuple[float, float]:
    """Turn a point around the origin."""
    (x, y), (c, s) = point, (math.cos(angle), math.sin(angle))
    return x * c - y * s, x * s + y * c


def direction(cell: int, origin: int) -> str:
    """Where a cell lies as seen from another one, in words: `to the left and above`."""
    right, down = cell % 3 - origin % 3, cell // 3 - origin // 3
    across = ("to the left", "", "to the right")[(right > 0) - (right < 0) + 1]
    along = ("above", "", "below")[(down > 0) - (down < 0) + 1]
    return " and ".join(word for word in (across, along) if word)

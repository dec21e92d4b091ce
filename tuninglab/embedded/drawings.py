"""Pictures of real drawings: one to four colour emoji on paper, placed from a seed.

The drawings are those of Noto Color Emoji, their names Unicode's (see NOTICE);
`python -m tools.embedded_drawings` makes the sheet. A part of the things they show, `held_out`, is
never drawn in any training, whatever its skin tone.
"""

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tuninglab.embedded.scenes import SIDE_PX, background

SHEET_PX, COLUMNS = 64, 40
HALF_PX = SIDE_PX // 2
# What the task asks about: things of eight kinds that everybody knows and names as Unicode does.
# Those that are held out (penguin, train, ...) are asked about in the test only.
ASKED = {
    "mammal": "lion,zebra,elephant,panda,rabbit,pig,giraffe,fox,cow,koala,monkey,moose,ox,hamster",
    "bird": "rooster,eagle,duck,swan,parrot,peacock,turkey,baby chick,penguin,dove,owl,flamingo",
    "fruit": "banana,lemon,strawberry,grapes,watermelon,pineapple,red apple,cherries",
    "vegetable": "carrot,eggplant,cucumber,potato,onion,hot pepper,garlic,avocado,broccoli",
    "dish": "bread,pizza,hamburger,hot dog,sandwich,sushi,pancakes,french fries,taco,rice ball",
    "land vehicle": "bicycle,tractor,ambulance,racing car,motorcycle,tram,police car,skateboard,"
    "train,bus,taxi,fire engine,kick scooter",
    "clothing": "glasses,jeans,dress,socks,scarf,backpack,coat,t-shirt,"
    "necktie,gloves,kimono,running shoe,top hat",
    "building": "house,castle,church,school,hospital,hotel,mosque,stadium,"
    "factory,Japanese castle,hindu temple,department store",
}
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
# A drawing alone is large or small; among others each has a quarter of the picture.
ALONE_PX, QUARTER_PX = (44, 92), (36, 47)


@dataclass(frozen=True)
class Drawing:
    """One drawing of the sheet.

    Args:
        number: its place on the sheet.
        name: Unicode's, such as `red apple`.
        kind: the plain word for what it is a kind of, `fruit`; "" for signs and symbols.
        tone: of the skin, `medium-dark`; "" where it is yellow or none is seen.
        color: of most of it; "" where no colour prevails.
        keywords: what it has to do with.
        held_out: whether training never shows it.
    """

    number: int
    name: str
    kind: str
    tone: str
    color: str
    keywords: tuple[str, ...]
    held_out: bool

    def cut(self) -> Image.Image:
        """The drawing as RGBA, cut to its outline: at most 64 px wide and high."""
        row, column = divmod(self.number, COLUMNS)
        x, y = SHEET_PX * column, SHEET_PX * row
        square = sheet().crop((x, y, x + SHEET_PX, y + SHEET_PX))
        return square.crop(square.getbbox())


@dataclass(frozen=True)
class Placed:
    """A drawing in a picture: its longer side and the corner of its square, in px."""

    drawing: Drawing
    side: int
    x: int
    y: int


@dataclass(frozen=True)
class DrawingScene:
    """Drawings on paper, and the seed that fixes every pixel."""

    things: tuple[Placed, ...]
    seed: int

    def draw(self) -> Image.Image:
        """Render the picture as RGB, 96 x 96 px."""
        rng = np.random.default_rng(self.seed)
        picture = self.paper(rng)
        for thing in self.things:
            cut = self.cut(thing.drawing, rng)
            scale = thing.side / max(cut.size)
            size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
            cut = cut.resize(size, Image.Resampling.BICUBIC)
            x, y = thing.x + (thing.side - size[0]) // 2, thing.y + (thing.side - size[1]) // 2
            picture.paste(cut, (x, y), cut)
        return picture

    def paper(self, rng: np.random.Generator) -> Image.Image:
        """What is behind the drawings; pre-training overrides this to vary it."""
        return background(rng)

    def cut(self, drawing: Drawing, rng: np.random.Generator) -> Image.Image:
        """A drawing as it is shown; pre-training overrides this to vary it."""
        return drawing.cut()

    @property
    def places(self) -> tuple[str, ...]:
        """The words for where the drawings are, of pictures with several."""
        return tuple(QUARTERS[2 * (t.y >= HALF_PX) + (t.x >= HALF_PX)] for t in self.things)


@cache
def sheet() -> Image.Image:
    """All drawings, row by row."""
    with Image.open(Path(__file__).with_name("drawings.webp")) as file:
        return file.convert("RGBA")


@cache
def drawings() -> tuple[Drawing, ...]:
    """All drawings, in the order of the sheet."""
    entries = json.loads(Path(__file__).with_name("drawings.json").read_text(encoding="utf-8"))
    for number, entry in enumerate(entries):
        entry["keywords"] = tuple(entry["keywords"])
        entry["number"] = number
    return tuple(Drawing(**entry) for entry in entries)


@cache
def asked_about(held_out: bool) -> tuple[Drawing, ...]:
    """The drawings of the task that training shows, or those that it never shows."""
    known = {name for names in ASKED.values() for name in names.split(",")}
    return tuple(d for d in drawings() if d.name in known and d.held_out == held_out)


def place(chosen: list[Drawing], rng: random.Random) -> DrawingScene:
    """A picture of the given drawings: one anywhere, or up to four in a quarter each."""
    if len(chosen) == 1:
        side = rng.randint(*ALONE_PX)
        x, y = (rng.randint(0, SIDE_PX - side) for _ in range(2))
        return DrawingScene((Placed(chosen[0], side, x, y),), rng.getrandbits(32))
    placed = []
    for drawing, quarter in zip(chosen, sorted(rng.sample(range(4), len(chosen))), strict=True):
        side = rng.randint(*QUARTER_PX)
        x, y = (HALF_PX * k + rng.randint(0, HALF_PX - side) for k in (quarter % 2, quarter // 2))
        placed.append(Placed(drawing, side, x, y))
    return DrawingScene(tuple(placed), rng.getrandbits(32))


def sample_drawings(rng: random.Random, among: tuple[Drawing, ...]) -> DrawingScene:
    """Draw a picture's content: half show one thing, a quarter several times the same thing."""
    if rng.random() < 0.5:
        return place([rng.choice(among)], rng)
    count = rng.randint(2, 4)
    chosen = rng.sample(among, count)
    if rng.random() < 0.5:
        copies = rng.randint(2, count)
        chosen = [chosen[0]] * copies + chosen[copies:]
        rng.shuffle(chosen)
    return place(chosen, rng)

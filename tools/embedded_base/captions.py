"""Captions and statements about generated pictures: what the bridge is trained to say.

A statement names what it speaks of and then says something about it ("the star is" + "blue."): to
continue it the model has to find that very object. List-like captions alone never ask the
cross-attention to select by a word, and a base trained on them alone stayed near chance on pictures
with two objects. No statement is a question.
"""

import random
from itertools import permutations

from tuninglab.embedded.digits import DigitScene
from tuninglab.embedded.questions import absent_name, with_article
from tuninglab.embedded.scenes import COLORS, SHAPES, Scene, direction, sample_scene

# (start, continuation): the start is given or cheap to guess, the continuation needs the picture
Statement = tuple[str, str]


def caption(picture: Scene | DigitScene) -> str:
    """All things in reading order, in one sentence."""
    if isinstance(picture, DigitScene):
        parts = [f"a {ink.color} {ink.digit}" for ink in picture.inks]
    else:
        parts = [f"a {t.size} {t.name} at the {t.place}" for t in picture.things]
    joined = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return joined[0].upper() + joined[1:] + "."


def caption_text(rng: random.Random) -> str:
    """A caption or statements about a scene nobody draws: text for the language model alone."""
    scene = sample_scene(rng)
    if rng.random() < 0.3:
        return caption(scene)
    return " ".join(f"{a} {b}" for a, b in scene_statements(scene, rng)[:3])


def statements(picture: Scene | DigitScene, rng: random.Random) -> list[Statement]:
    """Statements in random order, each with one right continuation."""
    if isinstance(picture, DigitScene):
        return digit_statements(picture, rng)
    return scene_statements(picture, rng)


def scene_statements(scene: Scene, rng: random.Random) -> list[Statement]:
    """What can be said of shapes: colour, shape, size, place, number, presence, relation."""
    things = scene.things
    colors, shapes, names = ([getattr(t, a) for t in things] for a in ("color", "shape", "name"))
    said: list[Statement] = []
    for t in things:
        if shapes.count(t.shape) == 1:
            said.append((f"The {t.shape} is", f"{t.color}."))
        if colors.count(t.color) == 1:
            said.append((f"The {t.color} thing is a", f"{t.shape}."))
        if names.count(t.name) == 1:
            said.append((f"The {t.name} is", f"{t.size}."))
            said.append((f"The {t.name} lies at the", f"{t.place}."))
        said.append((f"At the {t.place} lies", f"{with_article(f'{t.size} {t.name}')}."))
    said.append(("The picture shows", number(len(things), "thing")))
    for color, shape in zip(rng.sample(sorted(COLORS), 2), rng.sample(SHAPES, 2), strict=True):
        said.append((f"The number of {color} things is", f"{colors.count(color)}."))
        said.append((f"The number of {shape}s is", f"{shapes.count(shape)}."))
    color = rng.choice(colors)
    said.append((f"The number of {color} things is", f"{colors.count(color)}."))
    for name, verdict, amount in (
        (rng.choice(names), "present.", "one."),
        (absent_name(things, rng), "missing.", "none."),
    ):
        said.append((f"{capital(with_article(name))} is", verdict))
        said.append((f"As for {with_article(name)}, the picture shows", amount))
    unique = [t for t in things if names.count(t.name) == 1]
    for a, b in permutations(unique, 2):
        said.append((f"Seen from the {b.name}, the {a.name} lies", f"{direction(a.cell, b.cell)}."))
    rng.shuffle(said)
    return said


def digit_statements(scene: DigitScene, rng: random.Random) -> list[Statement]:
    """What can be said of handwriting: value, ink, place, parity, number."""
    digits = [ink.digit for ink in scene.inks]
    said: list[Statement] = [("It shows", number(len(digits), "digit"))]
    said.append(("The digits, from left to right, are", " ".join(map(str, digits)) + "."))
    for ink, place in zip(scene.inks, scene.places, strict=True):
        said.append((f"The {ink.color} digit is", f"{ink.digit}."))
        said.append((f"The {place} digit is", f"{ink.digit}."))
        said.append((f"The {place} digit has the color", f"{ink.color}."))
        said.append(
            (f"The number in {ink.color} is an", f"{'odd' if ink.digit % 2 else 'even'} number.")
        )
        if digits.count(ink.digit) == 1:
            said.append((f"The {ink.digit} is", f"{ink.color}."))
    rng.shuffle(said)
    return said


def number(count: int, noun: str) -> str:
    """`1 thing.`, `2 things.`."""
    return f"{count} {noun}{'' if count == 1 else 's'}."


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[0].upper() + text[1:]

"""Captions and statements about generated pictures: what the bridge is trained to say.

A statement names what it speaks of and then says something about it ("the star is" + "blue."): to
continue it the model has to find that very object. List-like captions alone never ask the
cross-attention to select by a word, and a base trained on them alone stayed near chance on pictures
with two objects. No statement is a question.
"""

import random
from itertools import permutations

from tuninglab.embedded.digits import DigitScene
from tuninglab.embedded.drawings import Drawing, DrawingScene
from tuninglab.embedded.questions import absent_name, with_article
from tuninglab.embedded.scenes import COLORS, SHAPES, Scene, direction, sample_scene

# (start, continuation): the start is given or cheap to guess, the continuation needs the picture
Statement = tuple[str, str]
Picture = Scene | DigitScene | DrawingScene
NUMBERS = ("no", "one", "two", "three", "four")


def caption(picture: Picture) -> str:
    """All things in reading order, in one sentence."""
    if isinstance(picture, DrawingScene):
        shown = [t.drawing for t in picture.things]
        parts = [
            name_in_caption(d)
            if shown.count(d) == 1
            else f"{NUMBERS[shown.count(d)]} times {d.name}"
            for d in dict.fromkeys(shown)
        ]
    elif isinstance(picture, DigitScene):
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


def statements(picture: Picture, rng: random.Random) -> list[Statement]:
    """Statements in random order, each with one right continuation."""
    if isinstance(picture, DrawingScene):
        return drawing_statements(picture, rng)
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


def drawing_statements(scene: DrawingScene, rng: random.Random) -> list[Statement]:
    """What can be said of drawings: name, kind, skin, colour, keywords, place, number."""
    shown = [t.drawing for t in scene.things]
    said: list[Statement] = [("The picture shows", number(len(shown), "thing"))]
    if len(shown) == 1:
        only = shown[0]
        said += [("It shows", f"{name_in_caption(only)}."), ("Its name is", f"{only.name}.")]
        said += [("It is a kind of", f"{only.kind}.")] * bool(only.kind)
        said += [("Its main color is", f"{only.color}.")] * bool(only.color)
        if only.keywords:
            words = rng.sample(only.keywords, min(3, len(only.keywords)))
            said.append(("It has to do with", f"{', '.join(words)}."))
        if only.kind in ("hand", "body part", "person"):
            said.append(("The skin is", f"{only.tone or 'yellow'}."))
    else:
        for drawing in dict.fromkeys(shown):
            said.append((f"As for {drawing.name}, there is", f"{NUMBERS[shown.count(drawing)]}."))
        kinds = [d.kind for d in shown]
        for kind in sorted({k for k in kinds if k}):
            said.append((f"The number of things of kind {kind} is", f"{kinds.count(kind)}."))
        for d, place in zip(shown, scene.places, strict=True):
            said.append((f"At the {place} one sees", f"{name_in_caption(d)}."))
            said += [(f"The thing at the {place} is a kind of", f"{d.kind}.")] * bool(d.kind)
            said += [(f"The thing at the {place} is mainly", f"{d.color}.")] * bool(d.color)
            if shown.count(d) == 1:
                said.append((f"The {d.name} is at the", f"{place}."))
    rng.shuffle(said)
    return said


def name_in_caption(drawing: Drawing) -> str:
    """`a red apple`, `thumbs up with dark skin`; what is many or has no article gets none."""
    name = drawing.name
    plural = name.endswith("s") and not name.endswith("ss")
    if not (plural or name[0].isupper() or drawing.kind in ("hand", "key", "zodiac sign", "")):
        name = with_article(name)
    return f"{name} with {drawing.tone} skin" if drawing.tone else name


def number(count: int, noun: str) -> str:
    """`1 thing.`, `2 things.`."""
    return f"{count} {noun}{'' if count == 1 else 's'}."


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[0].upper() + text[1:]

"""Questions about a picture, each with the one right answer, by type."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from tuninglab.embedded.digits import DigitScene
from tuninglab.embedded.drawings import DrawingScene
from tuninglab.embedded.scenes import (
    COLORS,
    HELD_OUT_PAIRS,
    SHAPES,
    Scene,
    Thing,
    direction,
)

Picture = Scene | DigitScene | DrawingScene


@dataclass(frozen=True)
class Question:
    """A question of a type, as a person would put it, and its exact answer."""

    type: str
    text: str
    answer: str


def ask(
    picture: Picture,
    rng: random.Random,
    count: int,
    weights: Mapping[str, float] | None = None,
) -> list[Question]:
    """Up to `count` questions of different types.

    Args:
        picture: what is asked about.
        rng: draws types and wordings.
        count: of questions; fewer where the picture allows fewer types.
        weights: how eagerly a type is drawn, 1 where it is not named.
    """
    if isinstance(picture, DrawingScene):
        possible = ask_drawings(picture, rng)
    else:
        known = ask_scene if isinstance(picture, Scene) else ask_digits
        possible = known(picture, rng)  # pyright: ignore[reportArgumentType]
    rng.shuffle(possible)
    first_of_type = {q.type: q for q in reversed(possible)}
    # Weighted drawing without replacement (Efraimidis and Spirakis, 2006): the highest u ** (1/w).
    keys = {t: rng.random() ** (1 / (weights or {}).get(t, 1)) for t in sorted(first_of_type)}
    return [first_of_type[t] for t in sorted(keys, key=keys.__getitem__, reverse=True)[:count]]


def ask_scene(scene: Scene, rng: random.Random) -> list[Question]:
    """Every question on shapes that has one clear answer in this scene."""
    things = scene.things
    colors, shapes, names = ([getattr(t, a) for t in things] for a in ("color", "shape", "name"))
    asked = []
    for thing in things:
        if shapes.count(thing.shape) == 1:
            text = rng.choice(("What color is the {}?", "Name the color of the {}.")).format(
                thing.shape
            )
            asked.append(Question("color", text, thing.color))
        if colors.count(thing.color) == 1:
            text = rng.choice(("What shape is the {} object?", "Which {} shape do you see?"))
            asked.append(Question("shape", text.format(thing.color), thing.shape))
        if names.count(thing.name) == 1:
            asked.append(Question("size", f"Is the {thing.name} small or large?", thing.size))
            text = rng.choice(("Where is the {}?", "Tell me the position of the {}."))
            asked.append(Question("where", text.format(thing.name), thing.place))
    asked.append(Question("count", "How many objects are there?", str(len(things))))
    color = rng.choice(colors if rng.random() < 0.7 else list(COLORS))
    asked.append(
        Question("count by color", f"How many {color} objects are there?", str(colors.count(color)))
    )
    asked.append(ask_exists(things, rng))
    unique = [t for t in things if names.count(t.name) == 1]
    if len(unique) > 1:
        a, b = rng.sample(unique, 2)
        text = rng.choice(
            ("In which direction from the {1} is the {0}?", "Where is the {0}, from the {1}?")
        )
        answer = direction(a.cell, b.cell)
        asked.append(Question("relation", text.format(a.name, b.name), answer))
    return asked


def ask_exists(things: tuple[Thing, ...], rng: random.Random) -> Question:
    """Whether something is there: half the answers are "present"."""
    if rng.random() < 0.5:
        name, answer = rng.choice(sorted({t.name for t in things})), "present"
    else:
        name, answer = absent_name(things, rng), "missing"
    return Question("exists", f"Is {with_article(name)} present or missing?", answer)


def absent_name(things: tuple[Thing, ...], rng: random.Random) -> str:
    """A colour and shape that no thing joins, mostly of words that both occur in the picture.

    Where no thing is of a held-out pair (all training pictures), none is named either: it would
    always be absent there, and naming it would teach the answer "no".
    """
    absent = {f"{c} {s}" for c in COLORS for s in SHAPES} - {t.name for t in things}
    if not any(t.held_out for t in things):
        absent -= {f"{c} {s}" for c, s in HELD_OUT_PAIRS}
    near = absent & {f"{a.color} {b.shape}" for a in things for b in things}
    half = {n for n in absent if any(t.color in n or t.shape in n for t in things)}
    return rng.choice(sorted(near if near and rng.random() < 0.6 else half))


def with_article(name: str) -> str:
    """`a blue star`, `an orange star`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def ask_digits(scene: DigitScene, rng: random.Random) -> list[Question]:
    """Every question on handwriting that has one clear answer in this picture."""
    inks, digits = scene.inks, [ink.digit for ink in scene.inks]
    k = rng.randrange(len(inks))
    ink, place = inks[k], scene.places[k]
    asked = [
        Question(
            "parity", f"Is the {ink.color} digit even or odd?", "odd" if ink.digit % 2 else "even"
        ),
        Question("how many digits", "How many digits do you see?", str(len(inks))),
    ]
    if digits.count(ink.digit) == 1:
        asked.append(Question("ink color", f"What color is the {ink.digit}?", ink.color))
    if len(inks) == 1:
        text = rng.choice(("Which digit is this?", "What digit is shown?", "Read the digit."))
        return [*asked, Question("digit", text, str(digits[0]))]
    text = rng.choice(("Read the number.", "What number is written here?"))
    asked.append(Question("number", text, " ".join(map(str, digits))))
    text = rng.choice(("Which digit is {}?", "Read the {} digit.")).format(ink.color)
    asked.append(Question("digit by color", text, str(ink.digit)))
    where = "in the middle" if place == "middle" else f"on the {place}"
    asked.append(Question("digit by place", f"Which digit is {where}?", str(ink.digit)))
    return asked


def ask_drawings(scene: DrawingScene, rng: random.Random) -> list[Question]:
    """Every question on drawings that has one clear answer in this picture.

    What is held out is not asked for by name: nobody can know the name of what was never shown.
    """
    shown = [thing.drawing for thing in scene.things]
    if len(shown) == 1:
        (only,) = shown
        text = rng.choice(("What kind of thing is this?", "Which kind of thing do you see?"))
        asked = [Question("kind", text, only.kind)]
        if only.color:
            asked.append(Question("main color", "Which color has most of it?", only.color))
        if not only.held_out:
            text = rng.choice(("What is this?", "What do you see?"))
            asked.append(Question("what", text, only.name))
        return asked
    asked = [Question("how many things", "How many things do you see?", str(len(shown)))]
    k = rng.randrange(len(shown))
    drawing, place = shown[k], scene.places[k]
    text = f"What kind of thing do you see at the {place}?"
    asked.append(Question("kind by place", text, drawing.kind))
    count = str(shown.count(drawing))
    if not drawing.held_out:
        asked.append(Question("what by place", f"What do you see at the {place}?", drawing.name))
        asked.append(Question("how many of it", f"How often do you see: {drawing.name}?", count))
    kind = sum(other.kind == drawing.kind for other in shown)
    text = f"How many things of the kind {drawing.kind} are there?"
    asked.append(Question("how many of a kind", text, str(kind)))
    return asked

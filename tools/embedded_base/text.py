"""Pre-training text: small English about people and things, never a question about a picture.

It gives the language model words, sentences, looking things up in a passage, and the shape of a
dialogue. Colours, shapes, places in a picture and digits occur in statements only. It does ask
where a person is or how many cups there are, in the words of a passage; no question of the demo
occurs word for word (tests/embedded/test_task.py checks it).
"""

import random

from tools.embedded_base.captions import caption_text

PEOPLE = (
    "Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Lena Max Nora Oscar Paula Tom".split()
)
ANIMALS = "dog cat bird horse mouse cow duck fox rabbit sheep".split()
JOBS = "teacher farmer king queen doctor baker sailor child".split()
MOODS = "happy sad old young quiet quick kind tired warm cold hungry brave".split()
THINGS = "ball book apple loaf car boat door table stone flower hat key cup lamp".split()
ROOMS = (
    "in the garden,near the river,on the hill,at school,"
    "in the kitchen,under the tree,in the city,at home"
).split(",")
TIMES = "in the morning,at noon,in the evening,at night,on Monday,on Sunday".split(",")
VERBS = "sees likes finds follows helps paints holds wants moves brings".split()
FACTS = (
    "Grass is green.", "The sky is blue.", "Snow is white.", "The night is black.",
    "The sun is yellow.", "An orange is orange.", "A square has 4 sides.",
    "A triangle has 3 sides.", "A circle is round.", "A star has 5 points.", "A cross has 4 arms.",
    "Ink can be red, green, blue or black.", "An elephant is large and a mouse is small.",
    "A digit is a sign for a number.", "A picture shows many things.",
    "Yes means that it is so, and no means that it is not so.",
    "Please look at the picture and tell me about it.", "An object is a thing that you can see.",
    "Read the letter and tell me what is written.", "Do you see the king?",
    "Your position is where you are.", "Every object has a name, a color, a shape and a size.",
    "2 objects are a pair.", "The words of a page are shown in lines.", "Which way do you go?",
    "Even numbers are 0, 2, 4, 6 and 8.",
    "A drawing has a left side, a right side, a top, a bottom and a center.",
    "Up is above and down is below.",
)  # fmt: skip
TALK = (
    ("Hello!", "Hello! How can I help you?"), ("Thank you very much.", "You are welcome."),
    ("Good morning, how are you?", "I am fine, thank you."),
    ("Who are you?", "I am a small model."), ("Good night!", "Sleep well."),
    ("Can you help me?", "yes"),
)  # fmt: skip


def sentence(rng: random.Random) -> str:
    """One statement about the world, numbers or people."""
    pick = rng.choice
    who = pick((pick(PEOPLE), f"the {pick(ANIMALS)}", f"the {pick(JOBS)}"))
    a, b = rng.randrange(10), rng.randrange(10)
    parity = "odd" if a % 2 else "even"
    start = rng.randrange(6)
    kinds = (
        f"there is {pick(('a', 'no', 'an old', 'a small'))} {pick(ANIMALS)}"
        f" {pick(ROOMS)} {pick(TIMES)}.",
        f"{who} reads the {pick(('number', 'word', 'name'))}"
        f" that is written on the {pick(THINGS)}.",
        f"{who} {pick(VERBS)} the {pick(MOODS)} {pick(ANIMALS)} {pick(ROOMS)}.",
        f"{who} is {pick(MOODS)} because the {pick(JOBS)} {pick(VERBS)} the {pick(THINGS)}.",
        f"{a} plus {b} is {a + b}.",
        f"{a} is an {parity} digit." if rng.random() < 0.5 else f"the digit {a} is {parity}.",
        f"{a} is {'more than' if a > b else 'less than' if a < b else 'the same as'} {b}.",
        "count: " + " ".join(str(i) for i in range(start, start + 5)) + ".",
        pick(FACTS),
    )
    text = pick(kinds)
    return text[0].upper() + text[1:]


def passage(rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """A few facts about people, and questions on them: (passage, [(question, answer), ...])."""
    count = rng.randint(2, 4)
    who = rng.sample(PEOPLE, count)
    kind = rng.randrange(5)
    if kind == 0:
        rooms = rng.sample(ROOMS, count)
        facts = [f"{p} is {r}" for p, r in zip(who, rooms, strict=True)]
        asked = [(f"Where is {p}?", r) for p, r in zip(who, rooms, strict=True)]
        asked += [(f"Who is {r}?", p) for p, r in zip(who, rooms, strict=True)]
        asked += [
            (f"Is there somebody {r}?", "yes" if r in rooms else "no") for r in rng.sample(ROOMS, 3)
        ]
    elif kind == 1:
        pets = rng.sample(ANIMALS, count)
        facts = [f"{p} has a {x}" for p, x in zip(who, pets, strict=True)]
        asked = [(f"Which animal does {p} have?", x) for p, x in zip(who, pets, strict=True)]
        asked += [(f"Who has the {x}?", p) for p, x in zip(who, pets, strict=True)]
    elif kind == 2:
        things, numbers = rng.sample(THINGS, count), [rng.randint(1, 9) for _ in range(count)]
        facts = [f"{p} buys {n} {t}s" for p, n, t in zip(who, numbers, things, strict=True)]
        asked = [
            (f"How many {t}s does {p} buy?", str(n))
            for p, n, t in zip(who, numbers, things, strict=True)
        ]
        asked += [(f"What does {p} buy?", f"{t}s") for p, t in zip(who, things, strict=True)]
        asked += [
            (f"How many {t}s are there?", str(n)) for n, t in zip(numbers, things, strict=True)
        ]
    elif kind == 3:
        moods = rng.sample(MOODS, count)
        facts = [f"{p} is {m}" for p, m in zip(who, moods, strict=True)]
        asked = [(f"Is {p} {m}?", "yes") for p, m in zip(who, moods, strict=True)]
        asked += [(f"Is {p} {m}?", "no") for p, m in zip(who, moods[1:] + moods[:1], strict=True)]
    else:
        verbs, things = [rng.choice(VERBS) for _ in who], rng.sample(THINGS, count)
        facts = [f"{p} {v} the {t}" for p, v, t in zip(who, verbs, things, strict=True)]
        asked = [(f"Who {v} the {t}?", p) for p, v, t in zip(who, verbs, things, strict=True)]
        asked += [
            (f"Name the thing that {p} {v}.", t) for p, v, t in zip(who, verbs, things, strict=True)
        ]
    text = (
        ", ".join(facts[:-1]) + " and " + facts[-1] if rng.random() < 0.5 else ". ".join(facts)
    ) + "."
    return text, rng.sample(asked, min(3, len(asked)))


def dialogue(rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """A task that needs no picture: (text before it, [(instruction, response), ...])."""
    kind = rng.randrange(6)
    if kind < 3:
        return passage(rng)
    if kind == 3:
        words = rng.sample(THINGS + ANIMALS, 3)
        return "", [(f"Repeat these words: {' '.join(words)}", " ".join(words))]
    if kind == 4:
        a, b = rng.randrange(10), rng.randrange(10)
        return "", [(f"What is {a} plus {b}?", str(a + b))]
    return "", [rng.choice(TALK)]


def training_text(rng: random.Random) -> list[tuple[str, float]]:
    """One document as (text, loss weight) pieces; what can be inferred weighs most."""
    draw = rng.random()
    if draw < 0.15:
        return [(" ".join(sentence(rng) for _ in range(3)), 1.0)]
    if draw < 0.4:  # captions without their picture: the words the bridge will need
        return [(caption_text(rng), 0.3)]
    before, asked = dialogue(rng)
    if draw < 0.7:
        pieces = [(before, 0.1)] if before else []
        for question, answer in asked:
            pieces += [(question, 0.1), (answer, 1.0)]
        return pieces
    pieces = [(before, 0.1), ("\n\n", 0.1)] if before else []
    for (
        question,
        answer,
    ) in asked:  # the pieces of tuninglab.data.prompt, which tokenizes them apart, too
        pieces += [
            ("### Instruction:\n", 0.1),
            (question, 0.1),
            ("\n\n", 0.1),
            ("### Response:\n", 0.1),
        ]
        pieces += [(answer, 1.0), ("<|endofchunk|>", 1.0), ("\n\n", 0.1)]
    return pieces[:-1]

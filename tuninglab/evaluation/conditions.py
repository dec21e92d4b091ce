"""What a question is shown: its own pictures, blank ones, or those of another question."""

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from PIL import Image

from tuninglab.data.images import load_image
from tuninglab.data.sample import ImageSource, Sample
from tuninglab.evaluation.questions import Question

GREY = (128, 128, 128)
ASKED, BLANK, SHUFFLED = "asked", "blank", "shuffled"
# The pictures of a question, by its number.
Condition = Callable[[int], Sequence[ImageSource]]


def conditions_of(questions: Sequence[Question], seed: int) -> dict[str, Condition]:
    """How the questions are asked: as they are, with blank and with exchanged pictures.

    Without pictures there is one way only, and nothing to exchange where a single question has
    some.
    """

    def asked(number: int) -> Sequence[ImageSource]:
        """The question's own."""
        return questions[number].sample.images

    def blank(number: int) -> Sequence[ImageSource]:
        """Grey ones of the same sizes."""
        return blanks(asked(number))

    found: dict[str, Condition] = {ASKED: asked}
    shown = [number for number, question in enumerate(questions) if question.sample.images]
    if shown:
        found[BLANK] = blank
    if len(shown) > 1:
        found[SHUFFLED] = _exchanged(questions, seed)
    return found


def blanks(images: Sequence[ImageSource]) -> list[ImageSource]:
    """Grey pictures of the sizes of these."""
    return [Image.new("RGB", load_image(image).size, GREY) for image in images]


def rings(groups: Mapping[int, Hashable], rng: random.Random) -> dict[int, int]:
    """Of each member of a group of several another one of it: nobody keeps the own place.

    Args:
        groups: the group of each number, in any order.
        rng: decides who follows whom.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for number in sorted(groups):
        members[groups[number]].append(number)
    source = {}
    for name in sorted(members, key=str):
        ring = members[name]
        if len(ring) > 1:
            rng.shuffle(ring)
            # One cycle through the shuffled members.
            source |= dict(zip(ring, ring[1:] + ring[:1], strict=True))
    return source


def _exchanged(questions: Sequence[Question], seed: int) -> Condition:
    """Pictures of another question of the same group with as many, so that they stay plausible.

    Who has no such other takes those of any with as many, and who has none of these the first ones
    of the others.
    """
    rng = random.Random(seed)
    counts = {n: len(q.sample.images) for n, q in enumerate(questions) if q.sample.images}
    source = rings({n: (questions[n].group or "", count) for n, count in counts.items()}, rng)
    source |= rings({n: count for n, count in counts.items() if n not in source}, rng)

    def shuffled(number: int) -> Sequence[ImageSource]:
        """Another question's pictures; those of a text question are none."""
        if number in source or number not in counts:
            return questions[source.get(number, number)].sample.images
        others = [n for n in counts if n != number]
        own = (image for n in _cycled(others, number) for image in questions[n].sample.images)
        found = list(islice(own, counts[number]))
        return [found[k % len(found)] for k in range(counts[number])]

    return shuffled


def _cycled(numbers: Sequence[int], start: int) -> list[int]:
    """The numbers from the first one behind `start`, then those before."""
    return [n for n in numbers if n > start] + [n for n in numbers if n < start]


class Blanked(Sequence[Sample]):
    """The same dialogues, every picture replaced by a grey one of its size: a control."""

    def __init__(self, samples: Sequence[Sample]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        sample = self.samples[index]
        return replace(sample, images=blanks(sample.images))


class Shuffled(Sequence[Sample]):
    """The same dialogues, each with the pictures of another one of its group: a control.

    Args:
        samples: each with the same number of pictures.
        groups: pictures are exchanged within a group only, so that they stay plausible. Samples
            alone in their group exchange among themselves; a single one joins another group.
        seed: of the exchange.

    Raises:
        ValueError: there is one sample only, whose picture nothing can take the place of.
    """

    def __init__(self, samples: Sequence[Sample], groups: Sequence[str], seed: int = 0):
        if len(groups) == 1:
            raise ValueError("1 sample; at least 2 are needed to exchange pictures")
        self.samples = samples
        rng = random.Random(seed)
        source = rings(dict(enumerate(groups)), rng)
        alone = [number for number in range(len(groups)) if number not in source]
        source |= rings(dict.fromkeys(alone, ""), rng)
        for number in range(len(groups)):
            if number not in source:
                # Between the first one and whose picture that has.
                first = min(source)
                source |= {number: source[first], first: number}
        self.source = [source[number] for number in range(len(groups))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return replace(self.samples[index], images=self.samples[self.source[index]].images)

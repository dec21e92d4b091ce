"""Records as the model reads them: the spans of their ids, decoded, and which are learned."""

import os
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from tuninglab.data.mixture import Joined
from tuninglab.data.prompt import IGNORED, encode_dialogue
from tuninglab.data.prompt_formats import TUNINGLAB, Prompt
from tuninglab.data.sample import ImageSource, Sample, StoredPicture
from tuninglab.data.sources import Source
from tuninglab.data.special_tokens import IMAGE_TOKEN


class Span(NamedTuple):
    """Tokens that follow each other.

    Args:
        text: they stand for.
        trained: whether the loss falls on them.
        picture: the name of the one that stands here; None: it is text.
    """

    text: str
    trained: bool
    picture: str | None = None


class Shown(NamedTuple):
    """A record as the model reads it.

    Args:
        sample: the record.
        spans: of all its tokens, in order.
        tokens: how many there are.
        trained: how many of them are learned.
    """

    sample: Sample
    spans: list[Span]
    tokens: int
    trained: int

    @property
    def json(self) -> dict[str, Any]:
        """The record as --json prints it."""
        spans = [span._asdict() for span in self.spans]
        figures = {"tokens": self.tokens, "trained": self.trained}
        return {"origin": self.sample.origin, **figures, "spans": spans}


def shown(sample: Sample, tokenizer: Any, prompt: Prompt = TUNINGLAB) -> Shown:
    """A sample as the model reads it: runs of tokens that are learned or not, and its pictures."""
    encoded = encode_dialogue(sample.messages, tokenizer, prompt)
    mark = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    names = iter([picture_name(picture) for picture in sample.images])
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    spans = []
    for (image, trained), run in groupby(pairs, lambda p: (p[0] == mark, p[1] != IGNORED)):
        ids = [index for index, _ in run]
        if image:
            # Marks that follow each other are one run, but a picture each.
            spans += [Span(IMAGE_TOKEN, trained, next(names)) for _ in ids]
        else:
            text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            spans.append(Span(str(text), trained))
    learned = sum(label != IGNORED for label in encoded.labels)
    return Shown(sample, spans, len(encoded.input_ids), learned)


def picture_name(picture: ImageSource) -> str:
    """What to call a picture."""
    if isinstance(picture, StoredPicture):
        # In a larger file, whose folder is that of the data.
        folder = os.path.dirname(getattr(picture, "file", ""))
        return picture.name.removeprefix(os.path.join(folder, ""))
    return os.path.basename(picture) if isinstance(picture, str | os.PathLike) else "a picture"


def some_of(sources: Sequence[Source], count: int) -> list[Sample]:
    """So many samples from all over some sources, the first among them."""
    whole = Joined([""] * len(sources), list(sources))
    chosen = np.linspace(0, len(whole) - 1, min(count, len(whole))).round().astype(int)
    return [whole[number] for number in chosen.tolist()]

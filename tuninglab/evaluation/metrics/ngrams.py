"""The runs of words of a caption that CIDEr and BLEU count."""

from collections import Counter
from functools import lru_cache

from tuninglab.evaluation.metrics.ptb import tokens

LONGEST = 4  # words in a run: both metrics count runs of 1, 2, 3 and 4


@lru_cache(maxsize=1 << 17)
def caption_tokens(text: str) -> tuple[str, ...]:
    """`tokens`, once for a caption that several metrics read."""
    return tuple(tokens(text))


def words(text: str) -> list[str]:
    """The tokens of a caption, divided at every blank, as pycocoevalcap's scorers read them.

    So "1 1/2" is two words, though one token.
    """
    return " ".join(caption_tokens(text)).split()


def ngrams(text: str) -> list[Counter[tuple[str, ...]]]:
    """How often each run of words occurs: one count for each length, from 1 to LONGEST."""
    found = words(text)
    return [
        Counter(zip(*(found[first:] for first in range(length)), strict=False))
        for length in range(1, LONGEST + 1)
    ]

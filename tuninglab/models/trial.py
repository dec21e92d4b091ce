"""A tokenizer and an image processor tried once, so that their folder is blamed and not the run."""

import base64
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from tuninglab.data.tokens import text_ids
from tuninglab.models.expressions import breaks_tokenizing
from tuninglab.untrusted import shown

# A text may become so many times longer: what is said of a character (NFKC: 18 at most) and more.
MOST_GROWTH = 64
TEXT = "What is in the picture? <image> 2 red circles.\n"
# Without rescaling, and with a deviation of 0.2, pixels reach 1,275.
LARGEST_PIXEL = 1e5


def try_tokenizer(tokenizer: Any) -> None:
    """Tokenize a sentence with a tokenizer whose rules leave a text its length, about.

    Raises:
        ValueError: it would make short texts long ones, would take for ever, or breaks; others, as
            the library raises.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = (getattr(backend, name, None) for name in ("normalizer", "pre_tokenizer", "decoder"))
    rules, *others = (part and json.loads(part.__getstate__()) for part in parts)
    for part in filter(None, (rules, *others)):
        for pattern in _patterns(part):
            if breaks_tokenizing(pattern):
                raise ValueError(
                    f"the regular expression {shown(repr(pattern))} in tokenizer.json can take for "
                    "ever on a short text"
                )
    times = _growth(rules) if rules else 1.0
    if times > MOST_GROWTH:
        raise ValueError(
            f"the normalizer in tokenizer.json can make a text {times:,.0f} times longer; "
            f"{MOST_GROWTH} times is the most that is taken"
        )
    text_ids(TEXT, tokenizer)


def try_pictures(image_processor: Any, side: int) -> None:
    """Prepare a picture with an image processor that should make it `side` x `side` pixels.

    Raises:
        ValueError: the result has another shape, or no finite numbers; others, as it raises.
    """
    picture = Image.new("RGB", (48, 40))
    picture.paste((255, 255, 255), (0, 0, 24, 40))
    pixels = image_processor([picture], return_tensors="pt")["pixel_values"]
    if pixels.shape != (1, 3, side, side):
        raise ValueError(
            f"it makes pictures of shape {tuple(pixels.shape[1:])}, not {(3, side, side)}"
        )
    if not torch.all(pixels.abs() <= LARGEST_PIXEL):
        raise ValueError(
            "it makes pictures of numbers that are not finite, or huge; correct its image_mean, "
            "image_std and rescale_factor"
        )


def _patterns(rule: Any) -> Iterator[str]:
    """The regular expressions in a tokenizer's part, as JSON, at any depth."""
    values = rule.items() if isinstance(rule, dict) else enumerate(rule)
    for name, value in values:
        if name == "Regex":
            yield value
        elif isinstance(value, (dict, list)):
            yield from _patterns(value)


def _growth(rule: dict[str, Any]) -> float:
    """How many times longer a text can become by a rule of a normalizer."""
    if rule["type"] == "Sequence":
        return math.prod(map(_growth, rule["normalizers"]))
    if rule["type"] == "Replace":
        new, old = len(rule["content"]), rule["pattern"]
        if "String" in old:
            return max(1.0, new / max(1, len(old["String"])))
        return max(1, new) + _hits_nothing(old["Regex"])
    if rule["type"] == "Prepend":
        return max(1.0, len(rule["prepend"]) / MOST_GROWTH)
    if rule["type"] == "Precompiled":
        # SentencePiece: 4 bytes say the length of a trie, then what it replaces by, NUL-separated.
        table = base64.b64decode(rule["precompiled_charsmap"])
        texts = table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")
        return 1.0 if max(map(len, texts)) <= MOST_GROWTH else math.inf
    return 1.0


def _hits_nothing(pattern: str) -> bool:
    """Whether a regular expression hits between any two letters; so taken where it is unknown."""
    try:
        return re.match(pattern, "") is not None
    except (re.error, RecursionError, OverflowError):
        return True

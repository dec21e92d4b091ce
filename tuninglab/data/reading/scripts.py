"""Which scripts texts are written in: Latin, Han, Cyrillic and so on, by their letters."""

import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache

# First words of Unicode names that are not those of a script.
FORMS = ("FULLWIDTH", "HALFWIDTH", "MODIFIER", "SMALL")
HAN = ("CJK", "IDEOGRAPHIC")


def scripts_of(characters: Mapping[str, int]) -> list[tuple[str, int]]:
    """Letters of each script, the most frequent first.

    Args:
        characters: how often each occurs; what is no letter belongs to no script.
    """
    found: Counter[str] = Counter()
    for character, count in characters.items():
        if script := script_of(character):
            found[script] += count
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))


@cache
def script_of(character: str) -> str:
    """The script of a letter, by its Unicode name; "" of what is no letter."""
    if not unicodedata.category(character).startswith("L"):
        return ""
    # Letters that this Python does not know yet have no name.
    words = unicodedata.name(character, "UNKNOWN").split()
    while words[0] in FORMS and len(words) > 1:
        words.pop(0)
    first = words[0].partition("-")[0]
    return "Han" if first in HAN else first.capitalize()

"""Real English for the language model: WordNet's words, glosses and examples, and CLDR's names.

It knows no question and no picture. What it gives: a row for every token that has been trained, so
that any word can be written, and which things are of a kind.
"""

import json
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from tuninglab.embedded.drawings import drawings

PARTS = ("noun", "verb", "adj", "adv")
EXAMPLE = re.compile(r'"([^"]{12,120})"')


@dataclass
class English:
    """Documents of real text, drawn at random.

    Args:
        sources: a folder with WordNet's data.noun, data.verb, data.adj and data.adv, and CLDR's
            annotations as names.json (English) and names_zh.json (Chinese).
    """

    sources: Path
    entries: list[tuple[str, str, str, list[str]]] = field(default_factory=list)
    names: list[tuple[str, list[str], str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for part in PARTS:
            self.entries += wordnet_entries(self.sources / f"data.{part}")
        self.names = named_things(self.sources)

    def draw(self, rng: random.Random) -> str:
        """One document."""
        kind = rng.random()
        if kind < 0.03:
            return spelled(rng.choice(self.entries)[0], rng)
        if kind < 0.05:
            return any_characters(rng)
        if kind < 0.12:
            name, words, chinese = rng.choice(self.names)
            if chinese and rng.random() < 0.3:
                return f"{name}: {chinese}"
            return f"{name}: {', '.join(rng.sample(words, min(4, len(words))))}."
        word, gloss, above, examples = rng.choice(self.entries)
        if examples and rng.random() < 0.4:
            return sentence(rng.choice(examples))
        if above and rng.random() < 0.4:
            return f"{with_article(word).capitalize()} is a kind of {above}."
        return f"{word}: {gloss}."


def wordnet_entries(file: Path) -> list[tuple[str, str, str, list[str]]]:
    """Of every synset a word, its definition, the word for what it is a kind of, and examples.

    The format is wndb(5WN): offset, file, type, words, pointers, then the gloss after a bar.
    """
    words: dict[str, str] = {}
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):  # the licence
            continue
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        count = int(fields[3], 16)
        names = [re.sub(r"\(.*\)", "", fields[4 + 2 * k]).replace("_", " ") for k in range(count)]
        words[fields[0]] = names[0]
        pointers = fields[5 + 2 * count :]
        above = next(
            (pointers[k + 1] for k in range(0, len(pointers) - 3) if pointers[k] == "@"), ""
        )
        definition = gloss.split('; "')[0].strip().rstrip(";")
        rows.append((names, definition, above, EXAMPLE.findall(gloss)))
    return [
        (name, gloss, words.get(above, ""), examples)
        for names, gloss, above, examples in rows
        for name in names[:2]
    ]


def named_things(sources: Path) -> list[tuple[str, list[str], str]]:
    """CLDR's things: English name, keywords, Chinese name; none that no picture may show."""
    held_out = {drawing.name for drawing in drawings() if drawing.held_out}
    english, chinese = (
        json.loads((sources / name).read_text(encoding="utf-8"))["annotations"]["annotations"]
        for name in ("names.json", "names_zh.json")
    )
    return [
        (entry["tts"][0], entry["default"], (chinese.get(sign, {}).get("tts") or [""])[0])
        for sign, entry in english.items()
        if entry.get("tts") and entry.get("default") and entry["tts"][0] not in held_out
    ]


def spelled(word: str, rng: random.Random) -> str:
    """A word letter by letter, in small letters or in capitals: their tokens train, too."""
    letters = word.upper() if rng.random() < 0.5 else word
    sign = rng.choice((" ", "-", ", "))
    return f"{word}: {sign.join(letters.replace(' ', ''))}"


def any_characters(rng: random.Random) -> str:
    """Characters of any script, so that no byte's row is left as it was drawn."""
    blocks = ((0x20, 0x7E), (0xA1, 0x17F), (0x370, 0x3FF), (0x410, 0x44F), (0x4E00, 0x9FFF),
              (0x3041, 0x30FF), (0x600, 0x6FF), (0xAC00, 0xD7A3), (0x1F300, 0x1F6FF))  # fmt: skip
    low, high = rng.choice(blocks)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(3, 12)))


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else text + "."


def with_article(name: str) -> str:
    """`a cat`, `an owl`; names keep their capital and get none."""
    if name[0].isupper():
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"

"""Answers that are nearly right: by letters, by numbers, by words."""

import re
import string
from collections import Counter

from tuninglab.evaluation.metrics.metric import Metric, Scored, each

# Less similar than this is another answer, not a misread one.
LEAST_SIMILAR = 0.5
TOLERANCE = 0.05


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and replacements of letters that make one text the other (Levenshtein).

    A column of the usual table at a time, the differences of its cells kept as bits of two whole
    numbers: 10,000 letters against 10,000 take a twentieth of a second. Source: Myers 1999, for
    whole texts as in Hyyro 2003, "A bit-vector algorithm for computing Levenshtein distances".
    """
    if not one or not other:
        return max(len(one), len(other))
    places: dict[str, int] = {}
    for place, letter in enumerate(one):
        places[letter] = places.get(letter, 0) | 1 << place
    last, every = 1 << len(one) - 1, (1 << len(one)) - 1
    # Bit i: cell i + 1 is larger (up) or smaller (down) by 1 than the cell above it.
    up, down, distance = every, 0, len(one)
    for letter in other:
        same = places.get(letter, 0)
        diagonal = (((same & up) + up) ^ up) | same | down
        # Of the same row, against the column before.
        more, less = down | every & ~(diagonal | up), diagonal & up
        distance += 1 if more & last else -1 if less & last else 0
        more, less = more << 1 | 1, less << 1
        up, down = (less | ~(diagonal | more)) & every, diagonal & more & every
    return distance


def anls(one: Scored) -> float:
    """1 - edit distance / length of the longer text, of the best answer; below 0.5 it is 0.

    Case and the number of blanks do not matter.
    """
    prediction = _folded(one.prediction)
    best = max(_similarity(prediction, _folded(answer)) for answer in one.answers)
    return best if best >= LEAST_SIMILAR else 0.0


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(one: str, other: str) -> float:
    longer, shorter = max(len(one), len(other)), min(len(one), len(other))
    # No fewer changes than the lengths differ by: long answers to short questions end here.
    if not longer or shorter / longer < LEAST_SIMILAR:
        return float(not longer)
    return 1 - edit_distance(one, other) / longer


def relaxed_accuracy(one: Scored) -> float:
    """Whether the prediction is a number within 5 % of a right one, or else the same text.

    The released rule to the letter: "50%" is 0.5, so no "50"; nothing but "0" is right where "0"
    is, as 5 % of it are nothing; case does not matter.
    """
    return float(any(_relaxed(one.prediction, answer) for answer in one.answers))


def _relaxed(prediction: str, answer: str) -> bool:
    said, right = _number(prediction), _number(answer)
    if said is not None and right:
        return abs(said - right) / abs(right) <= TOLERANCE
    return prediction.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def token_f1(one: Scored) -> float:
    """Harmonic mean of precision and recall of the words, of the best answer.

    Words are those of SQuAD: lower case, without punctuation and articles; two texts without words
    are equal.
    """
    said = _words(one.prediction)
    return max(_f1(said, _words(answer)) for answer in one.answers)


def _words(text: str) -> list[str]:
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _f1(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    # 2 P R / (P + R), where P = both / said and R = both / right.
    both = (Counter(said) & Counter(right)).total()
    return 2 * both / (len(said) + len(right))


ANLS = Metric(
    "anls",
    "similar by letters (ANLS)",
    each(anls),
    source="Biten et al. 2019, https://arxiv.org/abs/1905.13648; the threshold as DocVQA's code",
)
RELAXED_ACCURACY = Metric(
    "relaxed_accuracy",
    "right within 5 %",
    each(relaxed_accuracy),
    source="Masry et al. 2022, https://arxiv.org/abs/2203.10244 (ChartQA); pix2struct's metrics.py",
    aliases=("relaxed",),
)
TOKEN_F1 = Metric(
    "token_f1",
    "words in common (F1)",
    each(token_f1),
    source="Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250; evaluate-v2.0.py of SQuAD",
    aliases=("f1",),
)

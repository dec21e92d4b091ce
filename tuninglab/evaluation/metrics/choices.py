"""Multiple choice, and answers of many people compared as they are (A-OKVQA)."""

import re
from string import ascii_uppercase

from tuninglab.evaluation.metrics.metric import Metric, Scored, each
from tuninglab.evaluation.metrics.normalising import compared

# So many people who gave an answer make it wholly right.
ENOUGH = 3

# "Answer:", "The answer is", "Option", "The correct choice is:" before what is chosen.
SAID_BEFORE = re.compile(
    r"(?:the )?(?:correct |right |best )?(?:answer|option|choice)\b(?: is)?\s*:?\s*", re.IGNORECASE
)
# A letter alone, or before a mark or a line break and more: "B", "b.", "(B) red", "B: red". Not
# "A red one": that is an article.
LETTER = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])(?:[.:),]+(?=\s|$)|\s*(?=\n|$)))\s*")


def chosen(one: Scored) -> int | None:
    """The option that a prediction chooses, by its text or, where the question has them, letter.

    Whatever can be read as two different options ("B. red" where red is C) chooses none.
    """
    text = one.prediction.replace("**", "").strip()
    exactly = _exactly(text, one)
    if len(exactly) == 1 and not one.lettered:
        return exactly.pop()
    rest = text[found.end() :] if (found := SAID_BEFORE.match(text)) else text
    read, tail = _by_letter(rest, one)
    # "B. red" says it twice, "B, C" says two things.
    again = _by_text(tail, one) or _by_letter(tail, one)[0]
    if not read or read != again:
        read |= again | _by_text(text, one) | _by_text(rest, one)
    return read.pop() if len(read) == 1 else None


def right_options(one: Scored) -> set[int]:
    """The options that are right: those that the answers name by text or letter."""
    right: set[int] = set()
    letters = ascii_uppercase[: len(one.options)] if one.lettered else ""
    for answer in one.answers:
        text = answer.strip()
        if exactly := _exactly(text, one):
            right |= exactly
        elif len(text) == 1 and text in letters:
            right.add(letters.index(text))
        else:
            right |= _by_text(text, one)
    return right


def _exactly(text: str, one: Scored) -> set[int]:
    return {place for place, option in enumerate(one.options) if option.strip() == text}


def _by_letter(text: str, one: Scored) -> tuple[set[int], str]:
    """The option whose letter a text starts with, and what follows it."""
    found = LETTER.match(text) if one.lettered else None
    if found is None:
        return set(), ""
    place = ascii_uppercase.index((found[1] or found[2]).upper())
    return {place} & set(range(len(one.options))), text[found.end() :]


def _by_text(text: str, one: Scored) -> set[int]:
    """The options of this text: exactly, or else after normalising."""
    pairs = enumerate(compared(text, option) for option in one.options)
    return _exactly(text, one) or {place for place, (said, option) in pairs if said == option}


def mc_accuracy(one: Scored) -> float:
    """Whether a right option is chosen."""
    return float(chosen(one) in right_options(one))


def da_accuracy(one: Scored) -> float:
    """min(1, people who gave the predicted answer / 3), compared letter by letter."""
    return min(1.0, list(one.answers).count(one.prediction) / ENOUGH)


MC_ACCURACY = Metric(
    "mc_accuracy",
    "right option chosen",
    each(mc_accuracy),
    needs="options to choose from, the right answer among them",
    fits=lambda scored: bool(right_options(scored)),
    aliases=("mc",),
)
DA_ACCURACY = Metric(
    "da_accuracy",
    "direct answers (A-OKVQA)",
    each(da_accuracy),
    source="Schwenk et al. 2022, https://arxiv.org/abs/2206.01718; eval_predictions.py of A-OKVQA",
    needs=f"the answers of {ENOUGH} people or more, or none is wholly right",
    fits=lambda scored: len(scored.answers) >= ENOUGH,
    aliases=("da",),
)

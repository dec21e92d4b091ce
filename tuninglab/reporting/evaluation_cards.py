"""Answers one by one: which of them a page shows, and what stands on the card of each."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tuninglab.reporting.data_page import MOST_PICTURES, thumbnail
from tuninglab.reporting.evaluation_facts import Figures, primary_of, scale_of
from tuninglab.reporting.tables import bounded, mapping, number
from tuninglab.untrusted import MIB

# Cards of a page, and how many of them are kept for right answers where there are enough.
MOST_CARDS = 300
KEPT_FOR_RIGHT = 100
# Letters of all small pictures together.
MOST_THUMBNAILS = 24 * MIB
LETTERS = 300
MOST_ANSWERS = 6
# Means of shares such as 1/3 miss 1 by rounding.
ROUNDING = 1e-9

Row = Mapping[str, Any]
# Other answers to the same question, and what a card calls them.
OTHERS = {
    "blank": "Blank",
    "shuffled": "Shuffled",
    "prior": "Prior",
    "against": "Against",
}
# What cards can be filtered by, and what the filter calls it.
FILTERS = {
    "wrong": "wrong",
    "partly": "partly right",
    "right": "right",
    "changed": "changed when shuffled",
    "same": "same when shuffled",
    "gained": "gained",
    "lost": "lost",
}


class Gallery(NamedTuple):
    """The cards of a page.

    Attributes:
        cards: those not right first, from the worst on.
        filters: (key, name, how many of the cards), those that fit a card.
        kinds: types of question among the cards; a card's `kind` counts from 0 in here.
        said: how many answers there are and how many of them are shown.
    """

    cards: list[dict[str, Any]]
    filters: list[tuple[str, str, int]]
    kinds: list[str]
    said: str


def gallery(figures: Figures, rows: Sequence[Row]) -> Gallery:
    """The cards of an evaluation, at most MOST_CARDS.

    Args:
        figures: report.json.
        rows: `{"id", "question", "answers", "prediction", "score", "images", …}` each, in the order
            of the data.
    """
    most = scale_of(figures, primary_of(figures)).most
    against = mapping(figures.get("against"))
    sides = {key: set(map(str, against.get(key) or ())) for key in ("gained", "lost")}
    chosen = choose(rows, most, sides["gained"] | sides["lost"])
    kinds = list(dict.fromkeys(str(row["type"]) for row in chosen if row.get("type") is not None))
    cards, room = [], MOST_THUMBNAILS
    for row in chosen:
        card = _card(row, most, kinds, room) | {"against": _side(row, sides)}
        card["is"] = [key for key in FILTERS if key in _marks(row, most, card["against"])]
        room -= sum(map(len, card["pictures"]))
        cards.append(card)
    counts = Counter(key for card in cards for key in card["is"])
    filters = [(key, name, counts[key]) for key, name in FILTERS.items() if counts[key]]
    return Gallery(
        cards, filters, [bounded(kind, LETTERS) for kind in kinds], _said(rows, chosen, most)
    )


def choose(rows: Sequence[Row], most: float, moved: Collection[str]) -> list[Row]:
    """At most MOST_CARDS rows: those not right first, from the worst on, then right ones.

    Of more than fit, those that another model answered otherwise come before others, which are
    taken from all over the data.

    Args:
        rows: of all questions.
        most: the score of a right answer.
        moved: ids of those gained or lost.
    """
    right = [row for row in rows if state(row, most) == "right"]
    rest = [row for row in rows if state(row, most) != "right"]
    # Worst first; those of one score stay in the order of the data.
    rest.sort(key=lambda row: number(row.get("score")) or 0.0)
    kept = min(len(rest), MOST_CARDS - min(len(right), KEPT_FOR_RIGHT))
    return _some(rest, kept, moved) + _some(right, MOST_CARDS - kept, moved)


def state(row: Row, most: float) -> str:
    """Whether an answer is right, partly right or wrong; "" if its question has no score."""
    score = number(row.get("score"))
    if score is None:
        return ""
    if score >= most - ROUNDING:
        return "right"
    return "partly" if score > ROUNDING else "wrong"


def _some(rows: Sequence[Row], count: int, first: Collection[str]) -> list[Row]:
    """So many rows in their order: half of them of `first` if there are so many, others evenly."""
    if len(rows) <= count:
        return list(rows)
    named = [place for place, row in enumerate(rows) if str(row.get("id")) in first]
    taken = set(_evenly(named, count // 2))
    others = [place for place in range(len(rows)) if place not in taken]
    return [rows[place] for place in sorted(taken | set(_evenly(others, count - len(taken))))]


def _evenly(numbers: Sequence[int], count: int) -> list[int]:
    """So many of some numbers from all over them, the first and the last among them."""
    places = np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(int)
    return [numbers[place] for place in places.tolist()]


def _side(row: Row, sides: Mapping[str, Collection[str]]) -> str:
    return next((key for key, ids in sides.items() if str(row.get("id")) in ids), "")


def _marks(row: Row, most: float, side: str) -> set[str]:
    marks = {state(row, most), side}
    if row.get("shuffled") is not None:
        marks.add("same" if row["shuffled"] == row.get("prediction") else "changed")
    return marks


def _card(row: Row, most: float, kinds: Sequence[str], room: int) -> dict[str, Any]:
    images = list(row.get("images") or ())
    # Beyond the room only the text is shown: a page must open on a phone.
    pictures = [thumbnail(image) for image in images[:MOST_PICTURES]] if room > 0 else []
    score, kind, group = number(row.get("score")), row.get("type"), row.get("group")
    return {
        "id": bounded(str(row.get("id")), LETTERS),
        "question": bounded(str(row.get("question") or ""), LETTERS),
        "answered": bounded(str(row.get("prediction") or ""), LETTERS),
        "state": state(row, most),
        "score": "" if score is None else f"{score:.2f}",
        "answers": _answers(row.get("answers") or ()),
        "others": [
            (title, bounded(str(row[key]), LETTERS))
            for key, title in OTHERS.items()
            if row.get(key) is not None
        ],
        "kind": None if kind is None else kinds.index(str(kind)),
        # Of own data a question that is asked often is its own type.
        "kinds": [
            bounded(str(one), LETTERS)
            for one in (kind, group)
            if one and one != row.get("question")
        ],
        "pictures": pictures,
        "more": len(images) - len(pictures),
    }


def _answers(answers: Sequence[str]) -> list[str]:
    """Right answers, the most frequent first, with how many gave them."""
    counts = Counter(map(str, answers)).most_common()
    shown = [
        bounded(text, LETTERS) + (f" ×{count}" if count > 1 else "")
        for text, count in counts[:MOST_ANSWERS]
    ]
    more = len(counts) - len(shown)
    return [*shown, f"and {more} more"] if more > 0 else shown


def _said(rows: Sequence[Row], chosen: Sequence[Row], most: float) -> str:
    if len(chosen) == len(rows):
        return f"All {len(rows):,} answers, those that are not right first."
    right = sum(state(row, most) == "right" for row in rows)
    shown = sum(state(row, most) == "right" for row in chosen)
    return (
        f"{len(chosen):,} of {len(rows):,} answers: {len(chosen) - shown:,} of "
        f"{len(rows) - right:,} that are not right, then {shown:,} of {right:,} right ones. "
        "predictions.jsonl has all of them."
    )

import random
import re
from collections import Counter
from datetime import date, datetime, timedelta

import pytest

from tools.embedded_text_base.tasks import TASKS, draw, in_words
from tuninglab.embedded.dates import FIRST, LAST, SPELLINGS, ordinal, spell, split_of
from tuninglab.embedded.text_task import INSTRUCTION, DateTask, embedded_pairs

# How strptime reads each spelling, once the ending of an ordinal is gone.
FORMATS = {
    "day first": "%d %B %Y",
    "month first": "%B %d, %Y",
    "with weekday": "%A, %d %B %Y",
    "in a sentence": "the %d of %B, %Y",
    "numbers, day first": "%d/%m/%Y",
}


def read(text: str, spelling: str) -> date:
    text = re.sub(r"(?<=\d)(st|nd|rd|th)\b", "", text)
    for month in ("%B", "%b"):
        try:
            return datetime.strptime(text, FORMATS[spelling].replace("%B", month)).date()
        except ValueError:
            continue
    raise AssertionError(f"{text} is no {spelling}")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_says_the_day(spelling):
    rng = random.Random(0)
    for _ in range(200):
        day = date.fromordinal(rng.randint(FIRST.toordinal(), LAST.toordinal()))
        text = spell(day, spelling, rng)
        assert read(text, spelling) == day
        if spelling == "with weekday":
            assert text.startswith(day.strftime("%A"))


def test_ordinals():
    endings = {1: "st", 2: "nd", 3: "rd", 11: "th", 12: "th", 13: "th", 21: "st", 22: "nd"}
    endings |= {23: "rd", 30: "th", 31: "st"}
    assert all(ordinal(number) == f"{number}{end}" for number, end in endings.items())


def test_splits_share_no_day_and_are_spread_over_the_years():
    days = [FIRST + timedelta(days=n) for n in range((LAST - FIRST).days + 1)]
    counts = Counter(map(split_of, days))
    assert counts["test"] == pytest.approx(0.1 * len(days), rel=0.02)
    assert counts["val"] == pytest.approx(0.05 * len(days), rel=0.02)
    tested = Counter(day.month for day in days if split_of(day) == "test")
    assert max(tested.values()) < 1.5 * min(tested.values())
    drawn = {split: embedded_pairs(split, 500) for split in ("train", "val", "test")}
    for split, pairs in drawn.items():
        assert {split_of(date.fromisoformat(pair.target)) for pair in pairs} == {split}
        assert {pair.kind for pair in pairs} == set(SPELLINGS)
        for pair in pairs:
            assert read(pair.source.removeprefix(INSTRUCTION), pair.kind).isoformat() == pair.target
    assert embedded_pairs("test", 500) == drawn["test"]


def test_scores_before_after_and_of_the_prior():
    task = DateTask(50)
    task.scored = task.scored[:20]
    truths = [pair.target for pair in task.scored]

    def answer(pairs, max_new_tokens):
        assert pairs == task.scored and max_new_tokens >= len("2024-01-01") + 1
        return ["?", *truths[1:]]

    assert task.before(answer)["exact_match"] == 0.95
    scores = task.after(answer)
    assert set(scores) == {"after", "prior"}
    # Days of the test are not in the training data, so the prior is never right.
    assert scores["prior"]["exact_match"] == 0.0
    cards = task.write_cards(None)
    assert cards[0]["question"].startswith(INSTRUCTION)
    assert (cards[0]["after"], cards[1]["after"], cards[1]["truth"]) == ("?", *[truths[1]] * 2)


def test_the_base_never_learned_the_task_nor_saw_a_held_out_day():
    rng = random.Random(1)
    for _ in range(3000):
        source, target = draw(rng)
        assert "ISO" not in source and not re.search(r"\d-\d", source + target)
        for day in re.findall(r"\b(\d{1,2}/\d{1,2}/\d{4})\b", source + " " + target):
            try:
                found = datetime.strptime(day, "%d/%m/%Y").date()
            except ValueError:
                continue  # numbers joined by slashes
            if "date" in source:
                assert split_of(found) == "train"
    assert len(set(TASKS)) == 8


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "zero"), (13, "thirteen"), (40, "forty"), (99, "ninety-nine"), (700, "seven hundred")]
    + [(312, "three hundred and twelve")],
)
def test_numbers_in_words(number, words):
    assert in_words(number) == words

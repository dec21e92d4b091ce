"""The text demo's task: dates in many spellings, to be written as ISO dates.

A day belongs to one split only, whatever its spelling: no day that is scored was trained on.
"""

import random
from collections import Counter
from pathlib import Path
from typing import Any

from tuninglab.console import say
from tuninglab.data.pairs import Pair
from tuninglab.data.sources import Records
from tuninglab.data.splits import Splits
from tuninglab.embedded.dates import SPELLINGS, draw_day, spell
from tuninglab.evaluation.answers import exact_match
from tuninglab.evaluation.task import Answer

INSTRUCTION = "write as ISO date: "
SEEDS = {"train": 21, "val": 22, "test": 23}
VAL_PAIRS, TEST_PAIRS = 250, 1000
# An ISO date has ten characters, and the model a token for each; whoever writes more is wrong.
ANSWER_TOKENS = 16
SHOWN_PAIRS = 20


def embedded_pairs(split: str, count: int) -> list[Pair]:
    """The first pairs of a split, train, val or test; every spelling comes as often."""
    rng, pairs = random.Random(SEEDS[split]), []
    for number in range(count):
        spelling = list(SPELLINGS)[number % len(SPELLINGS)]
        day = draw_day(rng, split)
        source = INSTRUCTION + spell(day, spelling, rng)
        origin = f"embedded {split} dates, pair {number + 1}"
        pairs.append(Pair(source, day.isoformat(), origin, spelling))
    return pairs


class DateTask:
    """Dates to ISO dates, scored by exact match.

    Args:
        train_pairs: pairs to train on.
        scored: the split to score on; "val" is for choosing settings, "test" for reporting.
    """

    def __init__(self, train_pairs: int, scored: str = "test"):
        train, val = embedded_pairs("train", train_pairs), embedded_pairs("val", VAL_PAIRS)
        self.splits = Splits("embedded dates", Records(train), Records(val))
        self.scored = embedded_pairs(scored, TEST_PAIRS)
        self.answers: dict[str, list[str]] = {}

    def before(self, answer: Answer) -> dict[str, Any]:
        """Score the untuned model, for `evaluation.before` of the report."""
        return self._score("before", answer(self.scored, ANSWER_TOKENS))

    def after(self, answer: Answer) -> dict[str, dict[str, Any]]:
        """Score the tuned model, and the `prior`: the most frequent date of the training."""
        counts = Counter(pair.target for pair in self.splits.train)
        # Of dates equally frequent it is the first one.
        prior = min(counts, key=lambda target: (-counts[target], target))
        return {
            "after": self._score("after", answer(self.scored, ANSWER_TOKENS)),
            "prior": self._score("prior", [prior] * len(self.scored)),
        }

    def _score(self, name: str, answers: list[str]) -> dict[str, Any]:
        """Exact match over all and by spelling; the answers are kept."""
        self.answers[name] = answers
        kinds = [str(pair.kind) for pair in self.scored]
        score = exact_match(answers, [pair.target for pair in self.scored], kinds)
        say(f"exact match, {name}: {score['exact_match']:.3f} of {score['count']} dates")
        return score

    def write_cards(self, run_dir: Path) -> list[dict[str, Any]]:
        """The first dates scored, whatever was written for them; nothing is put into the folder."""
        return [
            {
                "question": pair.source,
                "type": pair.kind,
                "truth": pair.target,
                **{when: self.answers[when][number] for when in ("before", "after")},
            }
            for number, pair in enumerate(self.scored[:SHOWN_PAIRS])
        ]

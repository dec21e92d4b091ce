"""The text demo's task: dates in many spellings, to be written as ISO dates.

A day belongs to one split only, whatever its spelling: no day that is scored was trained on.
"""

import random
from collections import Counter
from pathlib import Path
from typing import Any

from tuninglab.data.sample import Pair
from tuninglab.data.sources import Records, Splits
from tuninglab.embedded.dates import SPELLINGS, draw_day, spell
from tuninglab.evaluation.metrics.metric import Scored
from tuninglab.evaluation.task import Answer, ExactMatchTask

INSTRUCTION = "write as ISO date: "
SEEDS = {"train": 21, "val": 22, "test": 23}
VAL_PAIRS, TEST_PAIRS = 250, 1000
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


class DateTask(ExactMatchTask):
    """Dates to ISO dates, scored by exact match.

    Args:
        train_pairs: pairs to train on.
        scored: the split to score on; "val" is for choosing settings, "test" for reporting.
    """

    NOUN = "dates"
    ANSWER_TOKENS = 16  # an ISO date has ten characters, and the model a token for each

    def __init__(self, train_pairs: int, scored: str = "test"):
        train, val = embedded_pairs("train", train_pairs), embedded_pairs("val", VAL_PAIRS)
        super().__init__(Splits("embedded dates", Records(train), Records(val)))
        self.scored = embedded_pairs(scored, TEST_PAIRS)

    @property
    def truths(self) -> list[str]:
        """The dates as they are to be written."""
        return [pair.target for pair in self.scored]

    @property
    def kinds(self) -> list[str]:
        """Their spellings."""
        return [str(pair.kind) for pair in self.scored]

    def right(self, sample: Pair) -> Scored:
        """What is right for a pair."""
        return Scored("", [sample.target])

    def after(self, answer: Answer) -> dict[str, dict[str, Any]]:
        """Score the tuned model, and the `prior`: the most frequent date of the training."""
        counts = Counter(pair.target for pair in self.splits.train)
        # Of dates equally frequent it is the first one.
        prior = min(counts, key=lambda target: (-counts[target], target))
        return {
            "after": self.score("after", answer(self.scored, self.ANSWER_TOKENS)),
            "prior": self.score("prior", [prior] * len(self.scored)),
        }

    def write_cards(self, run_dir: Path) -> list[dict[str, Any]]:
        """The first dates scored, whatever was written for them; nothing is put into the folder."""
        shown = enumerate(self.scored[:SHOWN_PAIRS])
        return [self.card(number, question=pair.source) for number, pair in shown]

"""Scores beside those of models that do not look: what a tuned model has to beat."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from tuninglab.data.sample import Sample
from tuninglab.data.sources import Splits
from tuninglab.evaluation.conditions import Blanked, Shuffled
from tuninglab.evaluation.task import Answer, ExactMatchTask


class PictureTask(ExactMatchTask):
    """Questions about pictures, scored as asked, with blank and with other pictures, and guessed.

    `groups` holds for every question the name of those it may exchange its picture with, `guesses`
    the answer that training gives to such a question most often.
    """

    groups: Sequence[str]
    guesses: Sequence[str]

    def __init__(self, splits: Splits):
        super().__init__(splits)
        # `val_loss` of whoever knows how frequent the answers are, where it is known.
        self.prior_loss: dict[str, float] = {}

    def shown(self) -> list[Sequence[Any]]:
        """The samples whose pictures the scores show: those scored, and blank ones."""
        return [self.scored, Blanked(self.scored)] if self.groups else [self.scored]

    def after(self, answer: Answer) -> dict[str, dict[str, Any]]:
        """Score the tuned model: `after`, `controls` (blank, shuffled), and the `prior`."""
        asked: dict[str, Sequence[Sample]] = {"after": self.scored}
        if self.groups:
            asked["blank"] = Blanked(self.scored)
            asked["shuffled"] = Shuffled(self.scored, self.groups)
        scores = {
            name: self.score(name, answer(samples, self.ANSWER_TOKENS))
            for name, samples in asked.items()
        }
        prior = self.score("prior", list(self.guesses)) | self.prior_loss
        return {"after": scores.pop("after"), "controls": scores, "prior": prior}


class Guesses:
    """How often training gives which answer to a question: all that can be known without looking.

    Args:
        answers: (question or its type, answer) of the training data.
    """

    def __init__(self, answers: Iterable[tuple[str, str]]):
        self.of_question: dict[str, Counter[str]] = defaultdict(Counter)
        self.of_any: Counter[str] = Counter()
        for question, answer in answers:
            self.of_question[question][answer] += 1
            self.of_any[answer] += 1

    def best(self, question: str) -> str:
        """The most frequent answer, of those equally frequent the first by alphabet."""
        counts = self.of_question.get(question) or self.of_any
        return min(counts, key=lambda answer: (-counts[answer], answer), default="")

    def nats(self, question: str, answer: str) -> float:
        """How surprising an answer is to who knows these counts, one added to each (Laplace)."""
        counts = self.of_question.get(question) or self.of_any
        return math.log((counts.total() + len(counts) + 1) / (counts[answer] + 1))

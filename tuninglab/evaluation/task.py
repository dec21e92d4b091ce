"""What data answers to the driver of the recipes: its samples, and its scores if it has any."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tuninglab.console import say
from tuninglab.data.sources import Splits
from tuninglab.evaluation.answers import exact_match

# What the model answers to samples, as it is at the time: (samples, most new tokens) -> texts.
# All processes must ask, for the same samples: each then answers a share of them.
Answer = Callable[[Sequence[Any], int], list[str]]

# The tokens of the answers of each of some samples.
AnswerIds = Callable[[Sequence[Any]], list[list[int]]]


@dataclass
class Task:
    """Data, with scores of its own besides the loss where a class below says so."""

    splits: Splits

    def settle(self, splits: Splits, questions: int, answer_ids: AnswerIds) -> None:
        """Take the records that the model can read, and how many questions shall be scored."""
        self.splits = splits

    def shown(self) -> list[Sequence[Any]]:
        """The samples whose pictures the scores show, beside the splits."""
        return []

    def before(self, answer: Answer) -> dict[str, Any]:
        """Score the untuned model, for `evaluation.before` of the report."""
        return {}

    def after(self, answer: Answer) -> dict[str, dict[str, Any]]:
        """Score the tuned model, as entries of `evaluation`: `after`, `controls`, `prior`."""
        return {}

    def write_cards(self, run_dir: Path) -> list[dict[str, Any]]:
        """Write what is shown into the run folder; returns some questions and answers."""
        return []


class ExactMatchTask(Task):
    """Data whose answers are compared with true ones, `truths`, over all and by type, `kinds`."""

    NOUN: ClassVar[str]  # what it asks about, for people
    ANSWER_TOKENS: int  # whoever writes more is wrong
    scored: Sequence[Any]
    truths: Sequence[str]
    kinds: Sequence[str]

    def __init__(self, splits: Splits):
        super().__init__(splits)
        self.answers: dict[str, list[str]] = {}

    def before(self, answer: Answer) -> dict[str, Any]:
        """Score the untuned model, for `evaluation.before` of the report."""
        return self.score("before", answer(self.scored, self.ANSWER_TOKENS))

    def score(self, name: str, answers: list[str]) -> dict[str, Any]:
        """Exact match, said; the answers are kept."""
        self.answers[name] = answers
        score = exact_match(answers, self.truths, self.kinds)
        say(f"exact match, {name}: {score['exact_match']:.3f} of {score['count']} {self.NOUN}")
        return score

    def card(self, number: int, **shown: Any) -> dict[str, Any]:
        """What was asked, and answered before and after, as answers.json holds it."""
        answered = {when: self.answers[when][number] for when in ("before", "after")}
        truth = {"type": self.kinds[number], "truth": self.truths[number]}
        return {**shown, **truth, **answered}

"""Scores of the demo's task: before and after tuning, what controls and what guessing reach."""

from pathlib import Path
from typing import Any

from tuninglab.console import say
from tuninglab.data.splits import Splits
from tuninglab.embedded.task import (
    TEST_QUESTIONS,
    TURNS,
    VAL_QUESTIONS,
    EmbeddedSamples,
    most_frequent_answers,
)
from tuninglab.evaluation.answers import Blanked, Shuffled, exact_match
from tuninglab.evaluation.task import Answer

SHOWN_PICTURES = 24
# The longest answers are two words; whoever writes more is wrong.
ANSWER_TOKENS = 12


class EmbeddedTask:
    """Questions about shapes and handwriting, scored by exact match.

    Args:
        train_pictures: dialogues to train on.
        scored: the split to score on; "val" is for choosing settings, "test" for reporting.
        questions: how many to score on; None: 1000.
    """

    def __init__(self, train_pictures: int, scored: str = "test", questions: int | None = None):
        train = EmbeddedSamples("train", train_pictures, TURNS)
        self.splits = Splits("embedded questions", train, EmbeddedSamples("val", VAL_QUESTIONS))
        self.scored = EmbeddedSamples(scored, questions or TEST_QUESTIONS)
        self.kinds = [item.questions[0].type for item in self.scored.items]
        self.groups = [item.group for item in self.scored.items]
        self.truths = [item.questions[0].answer for item in self.scored.items]
        self.prior = most_frequent_answers(train)
        self.answers: dict[str, list[str]] = {}

    def before(self, answer: Answer) -> dict[str, Any]:
        """Score the untuned model, for `evaluation.before` of the report."""
        return self._score("before", answer(self.scored, ANSWER_TOKENS))

    def after(self, answer: Answer) -> dict[str, dict[str, Any]]:
        """Score the tuned model: `after`, `controls` (blank, shuffled), and the `prior`."""
        blank, shuffled = Blanked(self.scored), Shuffled(self.scored, self.groups)
        return {
            "after": self._score("after", answer(self.scored, ANSWER_TOKENS)),
            "controls": {
                "blank": self._score("blank", answer(blank, ANSWER_TOKENS)),
                "shuffled": self._score("shuffled", answer(shuffled, ANSWER_TOKENS)),
            },
            "prior": self._score("prior", [self.prior.get(kind, "") for kind in self.kinds]),
        }

    def _score(self, name: str, answers: list[str]) -> dict[str, Any]:
        """Exact match over all, by type, and by what the picture shows; the answers are kept."""
        self.answers[name] = answers
        score = exact_match(answers, self.truths, self.kinds)
        groups = exact_match(answers, self.truths, self.groups)
        score |= {"by_group": groups["by_type"], "count_by_group": groups["count_by_type"]}
        say(f"exact match, {name}: {score['exact_match']:.3f} of {score['count']} questions")
        return score

    def write_cards(self, run_dir: Path) -> list[dict[str, str]]:
        """Write some pictures to `pictures/`; returns what was asked and answered about each.

        The first questions scored are shown, whatever their answers.
        """
        folder = run_dir / "pictures"
        folder.mkdir(exist_ok=True)
        cards = []
        for k, item in enumerate(self.scored.items[:SHOWN_PICTURES]):
            name = f"pictures/{k:03d}.png"
            item.picture.draw().save(run_dir / name)
            card = {"picture": name, "question": item.questions[0].text, "type": self.kinds[k]}
            card |= {"group": self.groups[k], "truth": self.truths[k]}
            cards.append(card | {when: self.answers[when][k] for when in ("before", "after")})
        return cards

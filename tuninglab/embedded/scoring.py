"""Scores of the demo's task: before and after tuning, what controls and what guessing reach."""

from pathlib import Path
from typing import Any

from tuninglab.data.sample import Sample
from tuninglab.data.sources import Splits
from tuninglab.disk import whole_file
from tuninglab.embedded.task import (
    TEST_QUESTIONS,
    TURNS,
    VAL_QUESTIONS,
    EmbeddedSamples,
)
from tuninglab.evaluation.by_type import scored_by_type
from tuninglab.evaluation.controls import Guesses, PictureTask
from tuninglab.evaluation.metrics.metric import Scored
from tuninglab.evaluation.questions import question_of
from tuninglab.evaluation.task import answered

SHOWN_PICTURES = 24


class EmbeddedTask(PictureTask):
    """Questions about shapes, handwriting and drawings, scored by exact match.

    Args:
        train_pictures: dialogues to train on.
        scored: the split to score on; "val" is for choosing settings, "test" for reporting.
        questions: how many to score on; None: 1000.
    """

    NOUN = "questions"
    ANSWER_TOKENS = 12  # the longest answers are two words
    scored: EmbeddedSamples

    def __init__(self, train_pictures: int, scored: str = "test", questions: int | None = None):
        train = EmbeddedSamples("train", train_pictures, TURNS)
        val = EmbeddedSamples("val", VAL_QUESTIONS)
        super().__init__(Splits("embedded questions", train, val))
        self.scored = EmbeddedSamples(scored, questions or TEST_QUESTIONS)
        self.kinds = [item.questions[0].type for item in self.scored.items]
        self.groups = [item.group for item in self.scored.items]
        self.truths = [item.questions[0].answer for item in self.scored.items]
        turns = (q for item in train.items for q in item.questions)
        guesses = Guesses((question.type, question.answer) for question in turns)
        self.guesses = [guesses.best(kind) for kind in self.kinds]

    def score(self, name: str, answers: list[str]) -> dict[str, Any]:
        """Exact match over all, by type, and by what the picture shows; the answers are kept."""
        groups = scored_by_type(answered(answers, self.rights), self.groups)
        by_group = {"by_group": groups["by_type"], "count_by_group": groups["count_by_type"]}
        return super().score(name, answers) | by_group

    def right(self, sample: Sample) -> Scored:
        """What is right for the last question of a dialogue."""
        return question_of(sample, "").scored("")

    def write_cards(self, run_dir: Path) -> list[dict[str, Any]]:
        """Write some pictures to `pictures/`; returns what was asked and answered about each.

        The first questions scored are shown, whatever their answers.
        """
        folder = run_dir / "pictures"
        folder.mkdir(exist_ok=True)
        cards = []
        for k, item in enumerate(self.scored.items[:SHOWN_PICTURES]):
            name = f"pictures/{k:03d}.png"
            with whole_file(run_dir / name) as beside:
                item.picture.draw().save(beside, "PNG")
            shown = {"picture": name, "question": item.questions[0].text, "group": item.group}
            cards.append(self.card(k, **shown))
        return cards

"""Scores on the user's own validation records, with the controls that the demo has."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tuninglab.data.images import load_image
from tuninglab.data.sources import Splits
from tuninglab.disk import whole_file
from tuninglab.evaluation.controls import Guesses, PictureTask
from tuninglab.evaluation.metrics.metric import Scored
from tuninglab.evaluation.scoring import OTHER, ROW_SHARE
from tuninglab.evaluation.task import Answer, AnswerIds, evenly

SHOWN = 12
MAX_ANSWER_TOKENS = 64
# Counted for the guesses; more would take longer to read than it could change.
GUESSED_FROM = 20_000


class Asked(NamedTuple):
    """A turn of a record.

    Attributes:
        question: what is asked.
        answer: the true answer, which is learned.
        kind: the type of question, where the record has one.
        right: all that is right; None: the answer alone.
    """

    question: str
    answer: str
    kind: str | None
    right: Scored | None = None

    @property
    def type(self) -> str:
        """What the question has in common with others: its type, or that it is the same."""
        return self.kind or self.question or "(the picture alone)"

    @property
    def all_right(self) -> Scored:
        """All that is right, beside no prediction yet."""
        return self.right or Scored("", [self.answer])


class OwnTask(PictureTask):
    """Validation records, each scored by the answer to its last question.

    Args:
        splits: the records.
        asked: the turns of a record, at least one.
    """

    NOUN = "validation questions"

    def __init__(self, splits: Splits, asked: Callable[[Any], list[Asked]]):
        super().__init__(splits)
        self.asked = asked
        self.scored, self.last, self.truths, self.kinds = [], [], [], []
        self.groups, self.guesses = [], []

    def settle(self, splits: Splits, questions: int, answer_ids: AnswerIds) -> None:
        """Choose at most so many of the records that are left, evenly over the file."""
        super().settle(splits, questions, answer_ids)
        self.scored = evenly(splits.val, questions)
        pictures = Counter(number_of_pictures(sample) for sample in self.scored)
        if pictures.keys() != {0}:
            # Pictures are exchanged with records that have as many, so there must be another one.
            able = {count for count, records in pictures.items() if records > 1 and count}
            self.scored = [s for s in self.scored if number_of_pictures(s) in able]
            self.groups = [f"{number_of_pictures(s)} pictures" for s in self.scored]
        if not self.scored:
            return
        turns = [self.asked(sample) for sample in self.scored]
        last = self.last = [of_record[-1] for of_record in turns]
        self.truths = [turn.answer for turn in last]
        counts = Counter(turn.type for turn in last)
        often = {kind for kind, count in counts.items() if count >= ROW_SHARE * len(last)}
        self.kinds = [turn.type if turn.type in often else OTHER for turn in last]
        seen = (turn for s in evenly(splits.train, GUESSED_FROM) for turn in self.asked(s))
        guesses = Guesses((turn.type, turn.answer) for turn in seen)
        self.guesses = [guesses.best(turn.type) for turn in last]
        nats = sum(guesses.nats(t.type, t.answer) for of_record in turns for t in of_record)
        if tokens := sum(map(len, answer_ids(self.scored))):
            self.prior_loss = {"val_loss": nats / tokens}
        # No token is shorter than a byte, and one ends the answer.
        longest = max(len(text.encode()) for right in self.rights for text in right.answers)
        self.ANSWER_TOKENS = min(MAX_ANSWER_TOKENS, longest + 1)

    @property
    def rights(self) -> list[Scored]:
        """All that is right for each record that is scored."""
        return [turn.all_right for turn in self.last]

    def right(self, sample: Any) -> Scored:
        """All that is right for the last question of a record."""
        return self.asked(sample)[-1].all_right

    def validation_records(self, questions: int) -> Sequence[Any]:
        """Those of the scores before and after: they are validation records."""
        return self.scored

    def before(self, answer: Answer) -> dict[str, Any]:
        """Score the untuned model; nothing without validation records."""
        return super().before(answer) if self.scored else {}

    def after(self, answer: Answer) -> dict[str, dict[str, Any]]:
        """Score the tuned model and the controls; nothing without validation records."""
        return super().after(answer) if self.scored else {}

    def write_cards(self, run_dir: Path) -> list[dict[str, Any]]:
        """The first records scored, with a copy of their first picture in `pictures/`."""
        cards = []
        for number, sample in enumerate(self.scored[:SHOWN]):
            shown = {"question": self.asked(sample)[-1].question}
            if number_of_pictures(sample):
                name = f"pictures/{number:03d}.png"
                (run_dir / "pictures").mkdir(exist_ok=True)
                picture = load_image(sample.images[0])
                # As large as a page shows it: the run folder is no second copy of the data.
                picture.thumbnail((384, 384))
                with whole_file(run_dir / name) as beside:
                    picture.save(beside, "PNG")
                shown["picture"] = name
            cards.append(self.card(number, **shown))
        return cards


def number_of_pictures(record: Any) -> int:
    """Of a record; pairs of texts have none."""
    return len(getattr(record, "images", ()))

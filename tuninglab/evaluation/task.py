"""What data answers to the driver of the recipes: its samples, and its scores if it has any."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tuninglab.console import say
from tuninglab.data.sources import Splits
from tuninglab.errors import UserError
from tuninglab.evaluation.by_type import scored_by_type, values
from tuninglab.evaluation.metrics.exact import EXACT_MATCH
from tuninglab.evaluation.metrics.metric import Metric, Scored

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

    def measure_by(self, metrics: Sequence[Metric], questions: int) -> None:
        """Take the metrics that score the validation records, once these are settled.

        Args:
            metrics: by which `during` scores; before and after they stand beside the usual score.
            questions: at most so many records are answered.

        Raises:
            UserError: the records lack what one needs, or nothing is scored.
        """
        raise UserError(
            f"--eval_metric is given, but the task {type(self).__name__}, from Python, scores no "
            "answers while it trains. Leave it out."
        )

    def shown(self) -> list[Sequence[Any]]:
        """The samples whose pictures the scores show, beside the splits."""
        return []

    def before(self, answer: Answer) -> dict[str, Any]:
        """Score the untuned model, for `evaluation.before` of the report."""
        return {}

    def during(self, answer: Answer) -> dict[str, float]:
        """Score validation records while training, as `val_` and the metric's name."""
        return {}

    def after(self, answer: Answer) -> dict[str, dict[str, Any]]:
        """Score the tuned model, as entries of `evaluation`: `after`, `controls`, `prior`."""
        return {}

    def write_cards(self, run_dir: Path) -> list[dict[str, Any]]:
        """Write what is shown into the run folder; returns some questions and answers."""
        return []


class ExactMatchTask(Task):
    """Data whose answers are compared with true ones, `truths`, over all and by type, `kinds`.

    Whatever is in `rights` is right, of which `truths` is what the data has the model say.
    """

    NOUN: ClassVar[str]  # what it asks about, for people
    ANSWER_TOKENS: int  # whoever writes more is wrong
    scored: Sequence[Any]
    truths: Sequence[str]
    kinds: Sequence[str]

    def __init__(self, splits: Splits):
        super().__init__(splits)
        self.answers: dict[str, list[str]] = {}
        self.metrics: Sequence[Metric] = ()
        # Answered while training, and what is right there.
        self.watched: Sequence[Any] = ()
        self.watched_rights: list[Scored] = []

    @property
    def rights(self) -> list[Scored]:
        """What is right for each question that is scored, beside no prediction yet."""
        return [Scored("", [truth]) for truth in self.truths]

    def right(self, sample: Any) -> Scored:
        """What is right for a sample of the splits, beside no prediction yet."""
        raise NotImplementedError

    def validation_records(self, questions: int) -> Sequence[Any]:
        """Those that are answered while training: choosing by the test split would flatter it."""
        return evenly(self.splits.val, questions)

    def measure_by(self, metrics: Sequence[Metric], questions: int) -> None:
        """See `Task`."""
        self.metrics, self.watched = metrics, self.validation_records(questions)
        self.watched_rights = [self.right(sample) for sample in self.watched]
        if not self.watched:
            raise UserError(
                "--eval_metric is given, but no validation record can be scored. Hold out more "
                "records (--val_split, --val_data), or leave it out."
            )
        for metric in metrics:
            for sample, right in zip(self.watched, self.watched_rights, strict=True):
                if not metric.fits(right):
                    raise UserError(
                        f"--eval_metric {metric.name} needs {metric.needs}; {sample.origin} has "
                        "not. Choose another metric."
                    )

    def before(self, answer: Answer) -> dict[str, Any]:
        """Score the untuned model, for `evaluation.before` of the report."""
        return self.score("before", answer(self.scored, self.ANSWER_TOKENS))

    def during(self, answer: Answer) -> dict[str, float]:
        """Score validation records while training, as `val_` and the metric's name."""
        if not self.metrics:
            return {}
        texts = answer(self.watched, self.ANSWER_TOKENS)
        scores = values(self.metrics, answered(texts, self.watched_rights))
        return {f"val_{name}": value for name, value in scores.items()}

    def score(self, name: str, answers: list[str]) -> dict[str, Any]:
        """Exact match and what else was chosen, said; the answers are kept."""
        self.answers[name] = answers
        others = [metric for metric in self.metrics if metric.name != EXACT_MATCH.name]
        score = scored_by_type(answered(answers, self.rights), self.kinds, others)
        beside = "".join(f"; {metric.name} {score[metric.name]:.3f}" for metric in others)
        exact = f"{score['exact_match']:.3f} of {score['count']} {self.NOUN}"
        say(f"exact match, {name}: {exact}{beside}")
        return score

    def card(self, number: int, **shown: Any) -> dict[str, Any]:
        """What was asked, and answered before and after, as answers.json holds it."""
        answered = {when: self.answers[when][number] for when in ("before", "after")}
        truth: dict[str, Any] = {"type": self.kinds[number], "truth": self.truths[number]}
        if others := [text for text in self.rights[number].answers if text != truth["truth"]]:
            truth["also_right"] = list(dict.fromkeys(others))
        return {**shown, **truth, **answered}


def evenly(records: Sequence[Any], most: int) -> list[Any]:
    """At most so many records, evenly over all."""
    count = min(most, len(records))
    return [records[k * len(records) // count] for k in range(count)]


def answered(answers: Sequence[str], rights: Sequence[Scored]) -> list[Scored]:
    """What was answered to each question beside what is right."""
    pairs = zip(answers, rights, strict=True)
    return [right._replace(prediction=answer) for answer, right in pairs]

"""One evaluation as it comes together: answers, scores, and the files of its folder."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import broadcast_object_list

from tuninglab.config import EvaluateConfig
from tuninglab.config.fields import leaves
from tuninglab.console import Choices, is_main_process, say
from tuninglab.errors import UserError
from tuninglab.evaluation.asking import Asking
from tuninglab.evaluation.conditions import ASKED, Condition
from tuninglab.evaluation.engine import Answerer, answer_all
from tuninglab.evaluation.metrics.ptb import TOKENIZER
from tuninglab.evaluation.place import AGAINST, Place
from tuninglab.evaluation.predictions import Answered, PredictionsFile, line_of
from tuninglab.evaluation.scoring import Report
from tuninglab.recipes.asked import Asked
from tuninglab.reporting.evaluation_page import write_evaluation
from tuninglab.run_folder import versions
from tuninglab.untrusted import MIB, read_json

PRIOR = "prior"
OF_CAPTIONS = {"cider", "bleu4", "rouge_l"}
LARGEST = 64 * MIB


class Evaluated(NamedTuple):
    """What came of the verb: the figures of each evaluation, one for each number of shots."""

    figures: list[dict[str, Any]]


@dataclass
class Evaluation:
    """One way of asking all questions, by one number of shots.

    Args:
        config: the settings.
        asked: the questions, and how they score.
        shots: examples before each.
        place: its folder.
        conditions: what is shown: own pictures and, for the controls, others.
        choices: what was decided, and why.
    """

    config: EvaluateConfig
    asked: Asked
    shots: int
    place: Place
    conditions: Mapping[str, Condition]
    choices: Choices
    answers: list[Answered] = field(default_factory=list)
    against: list[Answered] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    computed: int = 0
    wall_s: float = 0.0

    def ask(self, answerer: Answerer, asking: Asking, other: Any = None) -> None:
        """Put all questions to a model; another model, told by its stamp, is compared with.

        Raises:
            UserError: a question is too long, or a picture cannot be read.
            WorkError: the disk is full.
        """
        place, conditions = self.place, self.conditions
        if other is not None:
            asked = self.place.asked | {"model": other}
            place = Place.below(self.place, AGAINST, asked)
            conditions = {ASKED: conditions[ASKED]}
        # The first process decided where; the others may have looked too early.
        folder = Path(broadcast_object_list([str(place.folder)])[0])
        file = PredictionsFile(folder, answerer.accelerator.process_index)
        before = len(file.read()) if is_main_process() else 0
        start = time.perf_counter()
        rows = (answerer, self.asked.questions, asking, conditions, file, self.asked.candidates)
        answered = answer_all(*rows)
        if other is not None:
            self.against = answered
            return
        self.wall_s = time.perf_counter() - start
        self.answers = answered
        self.computed = max(0, len(answered) - before) * len(conditions)

    def add_predictions(self, predictions: Sequence[str]) -> None:
        """Take answers that were made elsewhere."""
        self.answers = [Answered("", {ASKED: text}, {}) for text in predictions]

    def add_against(self, predictions: Sequence[str]) -> None:
        """Take answers that were made elsewhere, to be compared with."""
        self.against = [Answered("", {ASKED: text}, {}) for text in predictions]

    def written(self, guesses: tuple[list[str], str]) -> dict[str, Any]:
        """Score, and write the folder from the main process; returns the figures.

        Args:
            guesses: the answer to each question of who does not look, and where from.
        """
        report = Report(self.asked.questions, self.asked.metrics, self.config.seed)
        ways = list(self.answers[0].texts)
        for way in ways:
            report.add(way, *_of_way(self.answers, way))
        # Who guesses an answer is as sure of it as can be.
        likely = [
            float(q.options[:1] == (text,))
            for q, text in zip(self.asked.questions, guesses[0], strict=True)
        ]
        report.add(PRIOR, guesses[0], likely if self.asked.candidates else None)
        controls = [way for way in ways if way != ASKED]
        figures = self._about() | report.figures(controls, PRIOR)
        figures["prior"]["source"] = guesses[1]
        figures["against"] = None
        if self.against:
            report.add(AGAINST, *_of_way(self.against, ASKED))
            figures["against"] = {"model": self.config.against, **report.against(AGAINST)}
        if is_main_process():
            self._write(figures, report.scores(), guesses[0])
        return figures

    def _about(self) -> dict[str, Any]:
        names = {metric.name for metric in self.asked.metrics}
        return {
            "name": self.place.folder.name,
            "model": self.config.model or str(self.config.predictions),
            "data": self.asked.data.name,
            "shots": self.shots,
            "why": self.asked.why,
            "settings": json.loads(json.dumps(leaves(self.config), default=str)),
            "choices": self.choices.made,
            "notes": self.notes,
            "speed": self._speed(),
            # Scores of captions depend on what counts as a word.
            **({"tokenizer": TOKENIZER} if names & OF_CAPTIONS else {}),
            "versions": versions(),
        }

    def _speed(self) -> dict[str, Any]:
        """How fast it was answered; where all was known, how fast that was."""
        path = self.place.folder / "report.json"
        if not self.computed and self.place.known and path.is_file():
            with suppress(UserError):
                return read_json(path, LARGEST, "report of the evaluation")["speed"]
        rate = self.computed / self.wall_s if self.computed else None
        return {"samples_per_s": rate, "wall_s": self.wall_s, "answers": self.computed}

    def _write(
        self, figures: dict[str, Any], scores: Sequence[float], guesses: Sequence[str]
    ) -> None:
        questions = self.asked.questions
        rows = []
        for number, (question, answered) in enumerate(zip(questions, self.answers, strict=True)):
            line = line_of(question, answered, {"score": scores[number]})
            more = {"question": question.text, "type": question.kind, "group": question.group}
            if self.against:
                more[AGAINST] = self.against[number].texts[ASKED]
            rows.append({**line, **more, PRIOR: guesses[number], "images": question.sample.images})
        kept = [{k: v for k, v in row.items() if k not in ("images",)} for row in rows]
        PredictionsFile(self.place.folder).write(kept)
        page = write_evaluation(self.place.folder, figures, rows)
        say(f"Report: {page}")


def _of_way(answers: Sequence[Answered], way: str) -> tuple[list[str], list[float | None] | None]:
    """The texts under a condition, and the first candidate's share of all probability."""
    texts = [answered.texts[way] for answered in answers]
    if not answers[0].probabilities:
        return texts, None
    return texts, [answered.probabilities[way][0] for answered in answers]

"""From answers to figures: scores with intervals, controls, and what looking is worth."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tuninglab.evaluation.conditions import ASKED
from tuninglab.evaluation.metrics.metric import Metric, Scored
from tuninglab.evaluation.metrics.scoring import Scores
from tuninglab.evaluation.metrics.statistics import difference
from tuninglab.evaluation.questions import Question

# Of data that names no types, questions asked less often have no row of their own; more types than
# these have none either.
ROW_SHARE, MOST_TYPES = 0.05, 40
MOST_ANSWERS, MOST_CONFUSED = 20, 12
OTHER = "other questions"
Figures = dict[str, Any]


class Report:
    """The figures of an evaluation as they come together.

    Args:
        questions: in the order of the data.
        metrics: the headline first.
        seed: draws the samples of the intervals.
    """

    def __init__(self, questions: Sequence[Question], metrics: Sequence[Metric], seed: int):
        self.questions, self.metrics, self.seed = questions, metrics, seed
        self.ways: dict[str, Scores] = {}
        self.types = _parts_of([question.kind for question in questions], 1)
        if self.types is None:
            often = ROW_SHARE * len(questions)
            self.types = _parts_of([question.text or None for question in questions], often)
        self.groups = _parts_of([question.group for question in questions], 1)

    @property
    def primary(self) -> Metric:
        """The headline."""
        return self.metrics[0]

    def add(
        self,
        way: str,
        predictions: Sequence[str],
        shares: Sequence[float | None] | None = None,
    ) -> None:
        """Score one way of asking: as asked, a control, guesses, another model."""
        given = shares or [None] * len(predictions)
        rows = zip(self.questions, predictions, given, strict=True)
        self.ways[way] = Scores.of(self.metrics, [q.scored(text, share) for q, text, share in rows])

    def scores(self) -> list[float]:
        """Of each question, by the headline."""
        return self.ways[ASKED].rows[self.primary.name][:, 0].tolist()

    def figures(self, controls: Sequence[str], prior: str | None) -> Figures:
        """What report.json holds of the scores.

        Args:
            controls: the ways that are controls.
            prior: the way that is a guess without looking, if there is one.

        Raises:
            UserError: a metric has no score of such questions.
        """
        asked = self.ways[ASKED]
        unseen = [*controls, *([prior] if prior else [])]
        return {
            "count": len(self.questions),
            "primary": self.primary.name,
            "metrics": asked.figures(self.seed),
            "titles": {metric.name: metric.title for metric in self.metrics},
            "most": {metric.name: metric.most for metric in self.metrics},
            "by_type": self._parts(asked, self.types),
            "by_group": self._parts(asked, self.groups),
            "by_answer": self._by_answer(asked),
            "confusion": confusion(asked.scored),
            "controls": {way: self._way(way) for way in controls},
            "prior": self._way(prior) if prior else {},
            "looking": self._looking(unseen),
        }

    def against(self, way: str) -> Figures:
        """How the answers differ from those of another way, question by question."""
        one, other = self.ways[ASKED], self.ways[way]
        step = one.rows[self.primary.name][:, 0] - other.rows[self.primary.name][:, 0]
        names = [question.id for question in self.questions]
        return {
            "metrics": other.figures(self.seed),
            "difference": one.less(other, self.seed),
            "gained": [names[k] for k in np.flatnonzero(step > 0).tolist()],
            "lost": [names[k] for k in np.flatnonzero(step < 0).tolist()],
        }

    def _way(self, way: str) -> Figures:
        scores = self.ways[way]
        parts = {"by_type": self._parts(scores, self.types)}
        parts |= {"by_group": self._parts(scores, self.groups)}
        return {**scores.figures(self.seed), **parts}

    def _parts(self, scores: Scores, names: Sequence[str] | None) -> Figures:
        """Scores of each type of question, the most frequent first."""
        if names is None:
            return {}
        found = np.array(names)
        return {
            name: {"count": count, **scores.figures(self.seed, found == name)}
            for name, count in Counter(names).most_common()
        }

    def _by_answer(self, scores: Scores) -> list[Figures]:
        """How often the most frequent right answers were met."""
        of_answer: dict[str, list[float]] = defaultdict(list)
        numbers = scores.rows[self.primary.name][:, 0].tolist()
        for one, number in zip(scores.scored, numbers, strict=True):
            of_answer[usual(one.answers)].append(number)
        most = sorted(of_answer.items(), key=lambda item: (-len(item[1]), item[0]))
        if len(most) == len(scores.scored):
            return []
        return [
            {"answer": answer, "count": len(found), "value": sum(found) / len(found)}
            for answer, found in most[:MOST_ANSWERS]
        ]

    def _looking(self, unseen: Sequence[str]) -> Figures | None:
        """By how much the answers beat the best of those that do not look."""
        if not unseen:
            return None
        metric, own = self.primary, self.ways[ASKED].rows[self.primary.name]
        # Of equals the first, in the order of the controls.
        values = {way: metric.of_all(self.ways[way].rows[metric.name]) for way in unseen}
        best = max(values, key=lambda way: values[way])
        apart = difference(metric, own, self.ways[best].rows[metric.name], self.seed)
        return {"metric": metric.name, "control": best, **apart}


def usual(answers: Sequence[str]) -> str:
    """The most frequent of the right answers; of equals the first."""
    return Counter(answers).most_common(1)[0][0]


def confusion(scored: Sequence[Scored]) -> Figures | None:
    """How often which answer was given where which was right, if there are few right ones.

    Rows are right answers, columns predictions, the last column all others.
    """
    right = Counter(usual(one.answers) for one in scored)
    if not 1 < len(right) <= MOST_CONFUSED:
        return None
    names = [name for name, _ in sorted(right.items(), key=lambda item: (-item[1], item[0]))]
    place: Callable[[str], int] = {name: k for k, name in enumerate(names)}.get  # pyright: ignore
    counts = np.zeros((len(names), len(names) + 1), np.int64)
    for one in scored:
        said = place(one.prediction)
        counts[place(usual(one.answers)), len(names) if said is None else said] += 1
    return {"answers": names, "counts": counts.tolist()}


def _parts_of(names: Sequence[str | None], least: float) -> list[str] | None:
    """The part that each question belongs to, seldom ones under one name.

    Args:
        names: of the parts; None where the data has none.
        least: as many questions has a part of its own.

    Returns:
        None where the data names none, or none is frequent.
    """
    counts: Counter[str] = Counter(name for name in names if name is not None)
    often = {name for name, count in counts.most_common(MOST_TYPES) if count >= least}
    return [name if name in often else OTHER for name in names] if often else None

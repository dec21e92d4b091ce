"""Which metrics score a data set: those asked for, or those that fit what it holds."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from tuninglab.config.checks import check
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.evaluation.metrics.metric import Metric
from tuninglab.evaluation.metrics.names import metric_named
from tuninglab.evaluation.metrics.scoring import undefined, unfit
from tuninglab.evaluation.questions import Question

AUTO = "auto"
# What the benchmarks themselves report, by how `data` calls their files. The first is the headline.
OF_SETS = {
    "VQA questions and annotations": ("vqa", "exact", "normalised"),
    "TextVQA": ("vqa", "exact", "normalised"),
    "A-OKVQA, direct answers": ("da", "exact", "normalised"),
    "A-OKVQA, multiple choice": ("mc",),
    "DocVQA": ("anls", "exact", "normalised"),
    "ChartQA": ("relaxed", "exact"),
    "COCO captions": ("cider", "bleu", "rouge"),
    "Karpathy's splits of captions": ("cider", "bleu", "rouge"),
    "pictures with captions": ("cider", "bleu", "rouge"),
    "Hateful Memes": ("auc", "accuracy"),
}
SHORT = ("exact", "normalised", "contains")
# Annotators of a question, and words of an answer, from which data is taken for what it looks like.
SEVERAL, LONG_WORDS = 3, 6


def choose_metrics(
    wish: Sequence[str],
    questions: Sequence[Question],
    what: Mapping[str, int],
    ranked: bool,
    choices: Choices,
) -> tuple[list[Metric], str]:
    """The metrics, the headline first, and why; says so.

    Args:
        wish: names, or `auto` among them.
        questions: that are scored.
        what: formats of the data, by how many records have them.
        ranked: whether candidates are ranked.
        choices: where the decision is said and kept.

    Raises:
        UserError: there is no such metric, or a question lacks what one needs.
    """
    words = words_of(wish)
    check(bool(words), "metric", wish, "auto, or names of metrics")
    names, why = [word for word in words if word != AUTO], "--metric"
    if AUTO in words:
        found, why = fitting(questions, what, ranked)
        names = [*names, *found]
    metrics = list({m.name: m for m in map(metric_named, names)}.values())
    for metric in metrics:
        _check(metric, questions, ranked)
    choices.add("metric", ", ".join(metric.name for metric in metrics), why)
    return metrics, why


def words_of(wish: Sequence[str]) -> list[str]:
    """The names in --metric, which may stand apart or with commas between."""
    return [word for entry in wish for word in entry.replace(",", " ").split()]


def fitting(
    questions: Sequence[Question], what: Mapping[str, int], ranked: bool
) -> tuple[tuple[str, ...], str]:
    """Names of the metrics that fit a data set, and why."""
    count = len(questions)
    if ranked and not all(question.lettered for question in questions):
        binary = all(len(question.options) == 2 for question in questions)
        return (("auc", "accuracy") if binary else ("accuracy",)), "candidates are ranked"
    known = Counter({name: number for name, number in what.items() if name in OF_SETS})
    if known and known.most_common(1)[0][1] >= count / 2:
        name = known.most_common(1)[0][0]
        return OF_SETS[name], f"the data is {name}"
    if all(question.lettered for question in questions):
        return ("mc", "exact"), "the questions have lettered options"
    answers = median(len(set(question.answers)) for question in questions)
    raters = median(len(question.answers) for question in questions)
    words = median(len(question.answers[0].split()) for question in questions)
    if words >= LONG_WORDS and answers > 1:
        return OF_SETS["COCO captions"], f"{answers:g} right texts a question, {words:g} words long"
    if words >= LONG_WORDS:
        return ("rouge", "f1", "exact"), f"answers are {words:g} words long"
    if raters >= SEVERAL:
        return ("vqa", "exact", "normalised"), f"{raters:g} annotators answered each question"
    return SHORT, f"one short answer a question ({words:g} words)"


def _check(metric: Metric, questions: Sequence[Question], ranked: bool) -> None:
    """Pass if every question has what the metric needs, and all together have a score.

    Raises:
        UserError: naming the first that has not.
    """
    asked = [question.scored("", 0.5 if ranked else None) for question in questions]
    if (place := unfit(metric, asked)) is not None:
        raise UserError(
            f"--metric {metric.name} needs {metric.needs}; {questions[place].sample.origin} has "
            "not. Choose another metric, or auto"
        )
    # Whatever is answered: told before anything is.
    if metric.undefined and math.isnan(metric.of_all(metric.rows(asked))):
        raise UserError(undefined(metric, len(questions)))

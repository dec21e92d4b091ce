"""The figures of a report, by hand."""

import numpy as np
import pytest

from tuninglab.console import Choices
from tuninglab.data.sample import Sample
from tuninglab.errors import UserError
from tuninglab.evaluation.choosing import choose_metrics, fitting
from tuninglab.evaluation.metrics.exact import CONTAINS, EXACT_MATCH
from tuninglab.evaluation.questions import question_of
from tuninglab.evaluation.scoring import OTHER, Report, confusion


def asked(*truths, **known):
    """A question for each right answer, or for each list of them."""
    questions = []
    for number, truth in enumerate(truths, 1):
        answers = truth if isinstance(truth, list) else [truth]
        turns = [("user", "What?"), ("assistant", answers[0])]
        messages = [{"role": role, "content": text} for role, text in turns]
        fields = {name: values[number - 1] for name, values in known.items()}
        questions.append(question_of(Sample(messages, [], answers=answers, **fields), number))
    return questions


def test_figures_of_ways_types_and_answers():
    questions = asked("a", "a", "b", "b", kind=["x", "x", "y", None])
    report = Report(questions, [EXACT_MATCH, CONTAINS], 0)
    report.add("asked", ["a", "a", "b", "c"])
    report.add("blank", ["a", "c", "c", "c"])
    report.add("prior", ["a", "a", "a", "a"])
    figures = report.figures(["blank"], "prior")
    assert figures["metrics"]["exact_match"]["value"] == 0.75
    parts = {
        kind: (of["count"], of["exact_match"]["value"]) for kind, of in figures["by_type"].items()
    }
    assert parts == {"x": (2, 1), "y": (1, 1), OTHER: (1, 0)}
    assert figures["controls"]["blank"]["exact_match"]["value"] == 0.25
    assert figures["controls"]["blank"]["by_type"]["x"]["exact_match"]["value"] == 0.5
    assert figures["looking"] | {"low": 0, "high": 0} == {
        **{"metric": "exact_match", "control": "prior", "value": 0.25, "low": 0, "high": 0},
    }
    assert figures["by_answer"] == [
        {"answer": "a", "count": 2, "value": 1},
        {"answer": "b", "count": 2, "value": 0.5},
    ]
    assert figures["confusion"] == {"answers": ["a", "b"], "counts": [[2, 0, 0], [0, 1, 1]]}
    against = report.against("blank")
    assert (against["gained"], against["lost"]) == ([2, 3], [])
    assert against["difference"]["exact_match"]["value"] == 0.5
    assert report.scores() == [1, 1, 1, 0]


def test_many_right_answers_have_no_confusion_table():
    scored = [q.scored("a") for q in asked(*map(str, range(13)))]
    assert confusion(scored) is None and confusion(scored[:1]) is None
    assert np.sum(confusion(scored[:12])["counts"]) == 12


@pytest.mark.parametrize(
    ("truths", "what", "first"),
    [
        (["red", "blue"], {}, "exact"),
        ([["red", "red", "rose"]] * 2, {}, "vqa"),
        (["it is a large red star there"] * 2, {}, "rouge"),
        ([["a large red star at the left", "one red star is on the left"]] * 2, {}, "cider"),
        (["red", "blue"], {"DocVQA": 2}, "anls"),
        (["red", "blue"], {"ChartQA": 2, "questions and answers": 2}, "relaxed"),
        # Of fewer than half of the questions.
        (["red", "blue", "green"], {"ChartQA": 1}, "exact"),
    ],
)
def test_what_data_looks_like_decides(truths, what, first):
    names, why = fitting(asked(*truths), what, ranked=False)
    assert names[0] == first and why


def test_a_single_class_is_refused_before_anything_is_asked():
    options = [("yes", "no")] * 2
    with pytest.raises(UserError, match="roc_auc of 2 questions does not exist"):
        choose_metrics(["auc"], asked("yes", "yes", options=options), {}, True, Choices())
    metrics, why = choose_metrics(
        ["auc,exact"], asked("yes", "no", options=options), {}, True, Choices()
    )
    assert [metric.name for metric in metrics] == ["roc_auc", "exact_match"] and why == "--metric"

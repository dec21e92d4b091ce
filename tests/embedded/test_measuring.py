"""What embedded tasks are chosen by while they train: their validation split, never the test."""

import pytest

from tuninglab.embedded.scoring import EmbeddedTask
from tuninglab.embedded.task import VAL_QUESTIONS, EmbeddedSamples
from tuninglab.embedded.text_task import VAL_PAIRS, DateTask, embedded_pairs
from tuninglab.errors import UserError
from tuninglab.evaluation.metrics.names import metric_named

METRICS = [metric_named("exact"), metric_named("vqa")]


def test_questions_about_pictures():
    task = EmbeddedTask(3, questions=6)
    assert task.during(lambda samples, most: []) == {}
    task.measure_by(METRICS, VAL_QUESTIONS)
    items = EmbeddedSamples("val", VAL_QUESTIONS).items
    truths = [item.questions[0].answer for item in items]
    said = [*truths[:60], *["?"] * (len(truths) - 60)]

    def answer(samples, most):
        assert most == task.ANSWER_TOKENS
        assert [s.origin for s in samples][:2] == [
            f"embedded val data, picture {n}" for n in (1, 2)
        ]
        return said

    assert task.during(answer) == {"val_exact_match": 60 / VAL_QUESTIONS, "val_vqa_accuracy": 0.25}
    # At the end it is the test that is scored, by both.
    score = task.before(lambda samples, most: list(task.truths))
    assert (score["exact_match"], score["vqa_accuracy"], score["count"]) == (1, 1, 6)
    assert score["by_group"].keys() <= {*task.groups} and set(score["by_group"].values()) == {1}


def test_dates_and_how_many_of_them():
    task = DateTask(5)
    task.measure_by(METRICS[:1], 50)
    val = embedded_pairs("val", VAL_PAIRS)
    assert task.watched == val[::5]
    right = [pair.target for pair in val[::5]]
    assert task.during(lambda pairs, most: [*right[:40], *["?"] * 10]) == {"val_exact_match": 0.8}


def test_a_metric_that_they_do_not_fit_is_named():
    with pytest.raises(UserError, match="mc_accuracy needs .*embedded val dates, pair 1 has not"):
        DateTask(5).measure_by([metric_named("mc")], 3)

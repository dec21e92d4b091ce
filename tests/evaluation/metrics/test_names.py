"""Every metric by its names."""

import pytest

from tuninglab.errors import UserError
from tuninglab.evaluation.metrics.names import METRICS, metric_named

# The short names that --metric documents, and the contract's names in reports.
SHORT = {
    "exact": "exact_match",
    "normalised": "exact_match_normalised",
    "contains": "contains",
    "vqa": "vqa_accuracy",
    "vqa_openflamingo": "vqa_accuracy_openflamingo",
    "mc": "mc_accuracy",
    "da": "da_accuracy",
    "anls": "anls",
    "relaxed": "relaxed_accuracy",
    "f1": "token_f1",
    "cider": "cider",
    "bleu": "bleu4",
    "rouge": "rouge_l",
    "auc": "roc_auc",
    "accuracy": "ranked_accuracy",
    "ranked": "ranked_accuracy",
}


@pytest.mark.parametrize("short, name", SHORT.items())
def test_short_names_and_names_in_reports(short, name):
    assert metric_named(short).name == name
    assert metric_named(name) is metric_named(short)


@pytest.mark.parametrize(
    "written, name",
    [
        ("ROUGE-L", "rouge_l"),
        ("BLEU-4", "bleu4"),
        ("CIDEr", "cider"),
        (" Exact Match", "exact_match"),
    ],
)
def test_spellings_of_papers(written, name):
    assert metric_named(written).name == name


def test_no_name_is_of_two_metrics():
    names = [name for metric in METRICS for name in (metric.name, *metric.aliases)]
    assert len(set(names)) == len(names)
    assert {metric.name for metric in METRICS} == set(SHORT.values())


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_each_says_what_it_is(metric):
    assert metric.title and metric.most in (1.0, 10.0)


@pytest.mark.parametrize("written", ["vqa_acuracy", "", "é", "x" * 1000, "met\x1b[0m"])
def test_what_is_unknown_is_refused_with_the_nearest(written):
    with pytest.raises(UserError) as caught:
        metric_named(written)
    text = str(caught.value)
    assert "Known: exact, " in text and text.isprintable() and len(text) < 900
    assert ("Did you mean vqa_accuracy?" in text) is (written == "vqa_acuracy")

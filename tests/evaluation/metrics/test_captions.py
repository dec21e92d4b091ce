"""Scores of captions against pycocoevalcap's own figures and against the plain rules."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuninglab.evaluation.metrics.bleu import BLEU4
from tuninglab.evaluation.metrics.cider import CIDER
from tuninglab.evaluation.metrics.metric import Metric, Scored
from tuninglab.evaluation.metrics.ngrams import words
from tuninglab.evaluation.metrics.ptb import UNCOUNTED, tokens
from tuninglab.evaluation.metrics.rouge import ROUGE_L

# Texts are ours, tokens and scores pycocoevalcap 1.2's (tools/caption_figures.py).
OFFICIAL = json.loads(Path(__file__).with_name("captions.json").read_text(encoding="utf-8"))
IMAGES = OFFICIAL["images"]
METRICS = (CIDER, BLEU4, ROUGE_L)


def scored(images) -> list[Scored]:
    return [Scored(one["prediction"], one["answers"]) for one in images]


def score(metric: Metric, questions: list[Scored]) -> float:
    (value,) = metric.total(metric.rows(questions), np.ones((1, len(questions))))
    return float(value)


# Few words, so that captions share runs and repeat themselves.
caption = st.lists(st.sampled_from("a dog cat runs red 1/2 don't .".split()), max_size=9).map(
    " ".join
)
question = st.builds(Scored, caption, st.lists(caption, min_size=1, max_size=4))
questions = st.lists(question, min_size=1, max_size=6)


@pytest.mark.parametrize("one", IMAGES, ids=lambda one: one["prediction"])
def test_tokens_of_captions_are_the_official_ones(one):
    texts = [one["prediction"], *one["answers"]]
    assert [" ".join(tokens(text)) for text in texts] == one["tokens"]


@pytest.mark.parametrize("one", OFFICIAL["oddities"], ids=lambda one: one["text"][:24])
def test_tokens_of_oddities_are_the_official_ones(one):
    assert " ".join(tokens(one["text"])).split(" ") == one["tokens"].split(" ")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_scores_are_the_official_ones(metric):
    each = metric.rows(scored(IMAGES))[:, 0]
    np.testing.assert_allclose(each, [one[metric.name] for one in IMAGES], rtol=0, atol=1e-9)
    assert score(metric, scored(IMAGES)) == pytest.approx(
        OFFICIAL["figures"][metric.name], abs=1e-9
    )


def test_a_letter_with_a_dot_at_the_end_is_a_full_stop():
    # There the official tokenizer goes by how the next caption of the file begins.
    assert tokens("the letter b.") == tokens("the letter b. The cat")[:3] == ["the", "letter", "b"]
    assert tokens("b. a cat")[0] == "b."


def test_every_kind_of_line_break_is_a_blank():
    assert tokens("a\r\nred\x0bdog\u2028ran\x85off") == ["a", "red", "dog", "ran", "off"]


@given(st.text() | st.text(alphabet="aN.'’-/ <>@&;:()5$#\\!?*_=^`\xa0\xad\ud83d", max_size=40))
def test_any_text_has_tokens(text):
    found = tokens(text)
    assert all(found) and not UNCOUNTED & set(found)
    assert not any(character in token for token in found for character in " \n\r\t")
    assert tokens(f"  {text}\n") == found


@given(caption, caption)
def test_nothing_reads_across_a_comma_between_blanks(first, second):
    assert tokens(f"{first} x , {second}") == [*tokens(f"{first} x"), *tokens(second)]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
@given(questions, st.randoms(use_true_random=False))
def test_order_changes_nothing(metric, asked, random):
    order = list(range(len(asked)))
    random.shuffle(order)
    turned = [
        asked[n]._replace(answers=random.sample(asked[n].answers, len(asked[n].answers)))
        for n in order
    ]
    rows = metric.rows(asked)
    np.testing.assert_allclose(metric.rows(turned), rows[order], rtol=1e-12, atol=1e-12)
    assert score(metric, turned) == pytest.approx(score(metric, asked))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
@given(questions, st.data())
def test_a_sample_is_the_questions_as_often_as_they_were_drawn(metric, asked, data):
    drawn = data.draw(st.lists(st.integers(0, len(asked) - 1), min_size=1, max_size=8))
    rows = metric.rows(asked)
    weights = np.bincount(drawn, minlength=len(asked))[None]
    (sampled,) = metric.total(rows, weights)
    (copied,) = metric.total(rows[drawn], np.ones((1, len(drawn))))
    assert sampled == pytest.approx(copied)
    assert 0 <= sampled <= metric.most * (1 + 1e-9)
    if metric is BLEU4:
        assert sampled == pytest.approx(score(BLEU4, [asked[n] for n in drawn]))


def runs_of(text: str, length: int) -> Counter:
    found = words(text)
    return Counter(tuple(found[n : n + length]) for n in range(len(found) - length + 1))


@given(questions)
def test_cider_is_a_mean_of_cosines(asked):
    """As vectors over all runs: tf x idf, clipped, a Gaussian of the difference in bigrams."""
    expected = []
    for one in asked:
        of_lengths = np.zeros(4)
        for length in (1, 2, 3, 4):
            images = [
                {run for text in other.answers for run in runs_of(text, length)} for other in asked
            ]
            runs = sorted(set().union(*images, runs_of(one.prediction, length)))
            frequency = np.array([max(1, sum(run in having for having in images)) for run in runs])
            rarity = math.log(len(asked)) - np.log(frequency)
            ours = rarity * [runs_of(one.prediction, length)[run] for run in runs]
            for text in one.answers:
                theirs = rarity * [runs_of(text, length)[run] for run in runs]
                norms = np.linalg.norm(ours) * np.linalg.norm(theirs)
                far = runs_of(one.prediction, 2).total() - runs_of(text, 2).total()
                if norms:
                    cosine = np.minimum(ours, theirs) @ theirs / norms
                    of_lengths[length - 1] += cosine * math.exp(-(far**2) / 72)
        expected.append(10 * of_lengths.mean() / len(one.answers))
    np.testing.assert_allclose(CIDER.rows(asked)[:, 0], expected, atol=1e-9)


def test_cider_of_one_image_is_0_and_of_the_only_reference_10():
    same = Scored("a red dog runs", ["a red dog runs"])
    assert score(CIDER, [same]) == 0
    both = CIDER.rows([same, Scored("two green cats sleep well", ["two green cats sleep well"])])
    np.testing.assert_allclose(both, 10)


@given(questions)
def test_bleu_is_precision_and_brevity(asked):
    right, all_runs, written, nearest = np.zeros(4), np.zeros(4), 0, 0
    for one in asked:
        size = len(words(one.prediction))
        written += size
        nearest += min((abs(len(words(t)) - size), len(words(t))) for t in one.answers)[1]
        for length in (1, 2, 3, 4):
            for run, times in runs_of(one.prediction, length).items():
                most = max(runs_of(text, length)[run] for text in one.answers)
                right[length - 1] += min(times, most)
                all_runs[length - 1] += times
    expected = math.prod((r + 1e-15) / (g + 1e-9) for r, g in zip(right, all_runs, strict=True))
    ratio = (written + 1e-15) / (nearest + 1e-9)
    expected = expected**0.25 * (math.exp(1 - 1 / ratio) if ratio < 1 else 1)
    assert score(BLEU4, asked) == pytest.approx(expected, abs=1e-12)


def longest_shared(one: list[str], other: list[str]) -> int:
    table = np.zeros((len(one) + 1, len(other) + 1), int)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1, j + 1] = (
                table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
            )
    return table[-1, -1]


@given(questions)
def test_rouge_takes_the_best_precision_and_the_best_recall(asked):
    expected = []
    for one in asked:
        ours = tokens(one.prediction) or [""]
        theirs = [tokens(text) or [""] for text in one.answers]
        precision = max(longest_shared(ours, each) / len(ours) for each in theirs)
        recall = max(longest_shared(ours, each) / len(each) for each in theirs)
        below = recall + 1.44 * precision
        expected.append(2.44 * precision * recall / below if below else 0)
    np.testing.assert_allclose(ROUGE_L.rows(asked)[:, 0], expected, atol=1e-12)


def test_a_mixed_fraction_is_one_token_to_rouge_and_two_words_to_the_others():
    assert tokens("1 1/2 cups") == ["1\xa01/2", "cups"]
    assert words("1 1/2 cups") == ["1", "1/2", "cups"]

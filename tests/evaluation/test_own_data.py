"""The user's own records, scored beside what needs no looking."""

import math
from collections import Counter

import pytest
from PIL import Image

from tuninglab.data.sample import Sample
from tuninglab.data.sources import Records, Splits
from tuninglab.evaluation.controls import Guesses
from tuninglab.evaluation.own_data import OTHER, OwnTask, evenly
from tuninglab.recipes.flamingo import asked

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def sample(question: str, answer: str, color: str, pictures: int = 1) -> Sample:
    content = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return Sample(messages, [Image.new("RGB", (4, 4), COLORS[color])] * pictures)


def own_task(val: list[Sample], train: list[Sample], questions: int = 100) -> OwnTask:
    task = OwnTask(Splits("own", Records(train), Records(val)), asked)
    task.settle(task.splits, questions, lambda samples: [[1, 2]] * len(samples))
    return task


def look(samples, max_new_tokens):
    """A model that sees: it names the colour of the first picture."""
    names = {value: name for name, value in COLORS.items()}
    return [names.get(s.images[0].getpixel((0, 0)), "grey") for s in samples]


def test_who_looks_beats_the_controls():
    train = [sample("Colour?", c, c) for c in ("red", "red", "green")]
    val = [sample("Colour?", c, c) for c in ("red", "green", "blue", "red")]
    task = own_task(val, train)
    scores = task.after(look)
    assert scores["after"]["exact_match"] == 1
    assert scores["controls"]["blank"]["exact_match"] == 0
    assert scores["controls"]["shuffled"]["exact_match"] < 1
    assert scores["prior"]["exact_match"] == 0.5 and scores["prior"]["by_type"] == {"Colour?": 0.5}


def test_the_loss_of_the_prior_by_hand():
    train = [sample("Colour?", c, c) for c in ("red", "red", "green")]
    task = own_task([sample("Colour?", c, c) for c in ("red", "blue")], train)
    # Two known answers and one for all others: 3/6 for red, 1/6 for blue; two tokens an answer.
    expected = -(math.log(3 / 6) + math.log(1 / 6)) / 4
    assert task.after(look)["prior"]["val_loss"] == pytest.approx(expected)


def test_guesses_are_the_most_frequent_answers_by_brute_force():
    turns = [("a", "x"), ("a", "y"), ("a", "y"), ("b", "z"), ("b", "w"), ("c", "y")]
    guesses = Guesses(turns)
    for question in "abc":
        counts = Counter(answer for asked, answer in turns if asked == question)
        assert counts[guesses.best(question)] == max(counts.values())
    # Equally often: the first by alphabet. Never asked: the most frequent of all.
    assert (guesses.best("b"), guesses.best("unknown")) == ("w", "y")
    assert Guesses([]).best("a") == ""


def test_records_without_pictures_have_no_blank_ones():
    task = own_task([sample("Two?", "2", "red", 0)] * 3, [sample("Two?", "2", "red", 0)])
    scores = task.after(lambda samples, most: ["2"] * len(samples))
    assert scores["controls"] == {} and scores["prior"]["exact_match"] == 1


def test_pictures_are_exchanged_with_as_many():
    val = [sample("Colour?", "red", "red", n) for n in (1, 1, 2, 2, 3)]
    task = own_task(val, val)
    assert [len(s.images) for s in task.scored] == [1, 1, 2, 2]
    seen = []

    def note(samples, most):
        seen.append([len(samples[k].images) for k in range(len(samples))])
        return ["red"] * len(samples)

    task.after(note)
    assert seen == [[1, 1, 2, 2]] * 3


def test_rare_questions_share_a_row_and_few_are_scored_evenly():
    val = [sample("Colour?", "red", "red") for _ in range(40)]
    val += [sample(f"Question {k}?", "red", "red") for k in range(5)]
    task = own_task(val, val)
    assert set(task.kinds) == {"Colour?", OTHER}
    assert evenly(range(10), 5) == [0, 2, 4, 6, 8] and evenly([], 5) == []
    assert len(own_task(val, val, questions=9).scored) == 9


def test_nothing_is_scored_without_validation_records():
    task = own_task([], [sample("Colour?", "red", "red")])
    assert task.before(look) == {} and task.after(look) == {} and task.truths == []


def test_cards_show_the_picture(tmp_path):
    val = [sample("Colour?", c, c) for c in ("red", "green")]
    task = own_task(val, val)
    task.before(lambda samples, most: ["?"] * len(samples))
    task.after(look)
    cards = task.write_cards(tmp_path)
    assert (cards[1]["before"], cards[1]["after"], cards[1]["truth"]) == ("?", "green", "green")
    with Image.open(tmp_path / cards[1]["picture"]) as shown:
        assert shown.getpixel((0, 0)) == COLORS["green"]

"""The splits hold what they say, and pre-training held none of the demo's questions."""

import json
import random

import pytest

from tools.embedded_base.captions import caption, statements
from tools.embedded_base.strokes import sample_varied_digits
from tools.embedded_base.text import training_text
from tuninglab.data.sample import plain_text
from tuninglab.embedded.digits import DigitScene
from tuninglab.embedded.scenes import sample_scene
from tuninglab.embedded.task import EmbeddedSamples, write_data
from tuninglab.errors import UserError


def held_out(item):
    return not isinstance(item.picture, DigitScene) and any(t.held_out for t in item.picture.things)


def test_every_test_picture_shows_what_training_never_did():
    for split, expected in (("train", 0), ("val", 0), ("test", 50)):
        items = EmbeddedSamples(split, 100).items
        assert sum(held_out(i) for i in items) == expected
        digits = [i.picture for i in items if isinstance(i.picture, DigitScene)]
        assert len(digits) == 50 and {d.split for d in digits} == {split}


def test_samples_are_lazy_records_with_one_picture_and_reproducible():
    samples, again = EmbeddedSamples("val", 6), EmbeddedSamples("val", 6)
    for k, sample in enumerate(samples):
        question = samples.items[k].questions[0]
        assert plain_text(sample.messages[0]) == question.text
        assert plain_text(sample.messages[-1]) == question.answer
        assert sample.kind == question.type and len(sample.images) == 1
        assert sample.images[0].tobytes() == again[k].images[0].tobytes()
    assert len(EmbeddedSamples("train", 4, turns=3)[0].messages) == 6


def test_a_longer_set_starts_with_the_shorter_one():
    short, long = EmbeddedSamples("train", 5, 3), EmbeddedSamples("train", 9, 3)
    assert short.items == long.items[:5]


def test_pre_training_text_and_captions_hold_no_question_of_the_demo():
    rng, said = random.Random(20), []
    for _ in range(3000):
        said.append(" ".join(text for text, _ in training_text(rng)))
    for _ in range(1500):
        for picture in (sample_scene(rng), sample_varied_digits(rng)):
            said.append(caption(picture))
            said += [f"{start} {end}" for start, end in statements(picture, rng)]
            assert not any("?" in text for text in said[-10:])
    everything = "\n".join(said)
    asked = {
        q.text
        for s in ("train", "test")
        for i in EmbeddedSamples(s, 1500, 3).items
        for q in i.questions
    }
    assert len(asked) > 500
    assert not [text for text in asked if text in everything]


def test_captions_never_show_held_out_pairs():
    rng = random.Random(21)
    for _ in range(500):
        scene = sample_scene(rng)
        for start, end in statements(scene, rng):
            for pair in (
                "red star",
                "green circle",
                "blue cross",
                "purple triangle",
                "orange square",
            ):
                assert pair not in start + " " + end


def test_write_data_makes_files_that_the_reader_takes(tmp_path, monkeypatch):
    from tuninglab.data.readers import read_samples

    monkeypatch.setattr("tuninglab.embedded.task.VAL_QUESTIONS", 3)
    monkeypatch.setattr("tuninglab.embedded.task.TEST_QUESTIONS", 3)
    write_data(tmp_path / "new", 4)
    samples = read_samples(tmp_path / "new" / "train.jsonl")
    expected = EmbeddedSamples("train", 4, 3)
    assert [s.messages for s in samples] == [s.messages for s in expected]
    record = json.loads((tmp_path / "new" / "test.jsonl").read_text().splitlines()[0])
    assert (tmp_path / "new" / record["images"][0]).is_file()
    with pytest.raises(UserError, match="not an empty folder"):
        write_data(tmp_path / "new", 4)

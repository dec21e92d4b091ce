"""The splits hold what they say, and pre-training held none of the demo's questions."""

import json
import random

import pytest

from tools.embedded_base.captions import caption, statements
from tools.embedded_base.strokes import sample_varied_digits
from tools.embedded_base.text import training_text
from tools.embedded_base.varied_drawings import sample_varied_drawings
from tuninglab.data.sample import plain_text
from tuninglab.embedded.digits import DigitScene
from tuninglab.embedded.drawings import DrawingScene, asked_about, drawings, sample_drawings
from tuninglab.embedded.questions import ask_drawings
from tuninglab.embedded.scenes import Scene, sample_scene
from tuninglab.embedded.task import EmbeddedSamples, write_data
from tuninglab.errors import UserError

KINDS = (Scene, DigitScene, DrawingScene)


def test_test_pictures_show_what_training_never_did():
    for split, expected in (("train", 0), ("val", 0), ("test", 1)):
        items = EmbeddedSamples(split, 120).items
        pictures = {
            kind: [i.picture for i in items if isinstance(i.picture, kind)] for kind in KINDS
        }
        assert [len(some) for some in pictures.values()] == [40, 40, 40]
        assert {d.split for d in pictures[DigitScene]} == {split}
        for scene in pictures[Scene]:
            assert any(thing.held_out for thing in scene.things) == expected
        # Every sixth one shows only what is held out, the others nothing that is.
        for number, scene in enumerate(pictures[DrawingScene]):
            unseen = {thing.drawing.held_out for thing in scene.things}
            assert unseen == {bool(expected and number % 6 == 5)}


def test_nothing_held_out_is_drawn_in_pre_training():
    rng, names = random.Random(22), {d.name for d in drawings() if d.held_out}
    for _ in range(800):
        picture = sample_varied_drawings(rng)
        assert not any(thing.drawing.held_out for thing in picture.things)
        said = {end.removesuffix(".") for _, end in statements(picture, rng)}
        assert not said & names


def test_a_drawing_held_out_is_so_in_every_skin():
    by_name = {}
    for drawing in drawings():
        by_name.setdefault(drawing.name, set()).add(drawing.held_out)
    assert all(len(answers) == 1 for answers in by_name.values())
    share = sum(d.held_out for d in drawings()) / len(drawings())
    assert 0.08 < share < 0.16


def test_drawings_lie_in_their_quarters_and_inside_the_picture():
    rng = random.Random(23)
    for _ in range(300):
        scene = sample_drawings(rng, asked_about(False))
        for thing, place in zip(scene.things, scene.places, strict=True):
            assert 0 <= thing.x and thing.x + thing.side <= 96
            assert 0 <= thing.y and thing.y + thing.side <= 96
            if len(scene.things) > 1:
                down, across = place.split()
                assert (thing.y >= 48) == (down == "bottom") and thing.side <= 48
                assert (thing.x >= 48) == (across == "right")
        # Something is drawn in each square, and the same every time.
        picture = scene.draw()
        assert picture.tobytes() == scene.draw().tobytes() and picture.size == (96, 96)


def test_questions_on_drawings_are_answered_by_what_was_placed():
    rng = random.Random(24)
    for _ in range(400):
        scene = sample_drawings(rng, asked_about(rng.random() < 0.5))
        shown = [thing.drawing for thing in scene.things]
        for question in ask_drawings(scene, rng):
            if question.type == "how many of it":
                name = question.text.removeprefix("How often do you see: ").removesuffix("?")
                assert int(question.answer) == sum(d.name == name for d in shown)
            elif question.type in ("what", "what by place"):
                assert question.answer in {d.name for d in shown if not d.held_out}
            elif question.type in ("kind", "kind by place"):
                assert question.answer in {d.kind for d in shown}
            elif question.type == "main color":
                assert question.answer == shown[0].color != ""


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
        drawn = sample_scene(rng), sample_varied_digits(rng), sample_varied_drawings(rng)
        for picture in drawn:
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
    from tuninglab.data.reading.opening import read_samples

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

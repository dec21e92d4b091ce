"""The engine against a plain loop: one question at a time, nothing kept, nothing shared."""

import json
import os
import random

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.asked import CHOICES, TOKENS, answer, conditions_of, questions, tiny
from tests.worlds import all_well, in_world
from tuninglab.data.prompt import encode_prompt
from tuninglab.errors import UserError
from tuninglab.evaluation.answers import make_batches
from tuninglab.evaluation.predictions import NAME, prompt_sha

RANKED = [CHOICES[k % 3 :] for k in range(11)]


def prompt_of(question, images):
    """ids (1, T) and pixels (1, M, 1, 3, H, W) of a question alone."""
    _, processor = tiny()
    turns = question.sample.messages[:-1]
    ids = torch.tensor([encode_prompt(turns, processor.tokenizer, processor.prompt)])
    if not images:
        return ids, None
    pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    return ids, pixels[None, :, None]


@pytest.fixture(scope="module")
def plain():
    """By condition, the text of each question."""
    model, processor = tiny()
    said = {}
    for name, pictures in conditions_of(questions()).items():
        said[name] = []
        for number, question in enumerate(questions()):
            ids, pixels = prompt_of(question, pictures(number))
            options = {"max_new_tokens": TOKENS, "do_sample": False}
            new = model.generate(input_ids=ids, pixel_values=pixels, **options)[0, ids.shape[1] :]
            said[name].append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of predictions.jsonl of one undisturbed evaluation."""
    folder = tmp_path_factory.mktemp("whole")
    answer(folder)
    return (folder / NAME).read_bytes()


def test_the_plain_answers_tell_pictures_and_questions_apart(plain):
    assert len(set(plain["asked"])) > 5
    pictured = [k for k, question in enumerate(questions()) if question.pictures]
    for control in ("blank", "shuffled"):
        assert any(plain[control][k] != plain["asked"][k] for k in pictured)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_answers_are_those_of_a_plain_loop_whatever_the_batch(plain, tmp_path, size):
    answered = answer(tmp_path, size=size)
    for name, texts in plain.items():
        assert [one.texts[name] for one in answered] == texts, name
    lines = [json.loads(line) for line in (tmp_path / NAME).read_text().splitlines()]
    for line, one, question in zip(lines, answered, questions(), strict=True):
        assert list(line) == ["id", "prompt_sha", "prediction", "answers", "blank", "shuffled"]
        assert (line["id"], line["answers"]) == (question.id, ["red"])
        assert line["prediction"] == one.texts["asked"] and line["blank"] == one.texts["blank"]
        ids, _ = prompt_of(question, [])
        assert line["prompt_sha"] == one.prompt_sha == prompt_sha(ids[0].tolist())


def test_several_beams_are_those_of_generate(tmp_path):
    model, processor = tiny()
    answered = answer(tmp_path, beams=3, length_penalty=-2.0)
    for one, question in zip(answered, questions(), strict=True):
        ids, pixels = prompt_of(question, question.sample.images)
        options = {"num_beams": 3, "length_penalty": -2.0, "max_new_tokens": TOKENS}
        new = model.generate(input_ids=ids, pixel_values=pixels, do_sample=False, **options)
        text = processor.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)
        assert one.texts["asked"] == text.strip()


@given(st.permutations(range(11)))
@settings(max_examples=5)
def test_the_order_of_questions_changes_no_bit_of_an_answer(tmp_path_factory, whole, order):
    folder = tmp_path_factory.mktemp("permuted")
    # Shuffled pictures are the caller's: here those of the first order.
    shown = conditions_of(questions())
    moved = {name: lambda k, own=own: own(order[k]) for name, own in shown.items()}
    answer(folder, [questions()[k] for k in order], moved)
    lines = (folder / NAME).read_bytes().splitlines()
    assert lines == [whole.splitlines()[k] for k in order]


@pytest.mark.parametrize(
    ("stop", "ranked"), [(0, None), (2, None), (3, None), (8, None), (10, None), (7, RANKED)]
)
def test_killed_while_a_picture_is_read_it_goes_on_to_the_same_bytes(tmp_path, stop, ranked):
    calls = 0
    shown = conditions_of(questions())

    def failing(k):
        nonlocal calls
        calls += 1
        if calls > stop:
            raise KeyboardInterrupt
        return shown["asked"](k)

    with pytest.raises(KeyboardInterrupt):
        answer(tmp_path / "cut", conditions={**shown, "asked": failing}, candidates=ranked)
    kept = (tmp_path / "cut" / NAME).read_text().splitlines()
    # Batches of three; the one at hand is lost, and none is there in part.
    assert len(kept) == stop // 3 * 3
    again = []

    def counted(k):
        again.append(questions()[k].id)
        return shown["asked"](k)

    answer(tmp_path / "cut", conditions={**shown, "asked": counted}, candidates=ranked)
    assert not set(again) & {json.loads(line)["id"] for line in kept}
    assert len(again) == 11 - len(kept)
    answer(tmp_path / "whole", candidates=ranked)
    assert (tmp_path / "cut" / NAME).read_bytes() == (tmp_path / "whole" / NAME).read_bytes()


@given(st.integers(0, 10**6), st.binary(max_size=20), st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_cut_anywhere_it_goes_on_to_the_same_bytes(tmp_path_factory, whole, place, junk, mixed):
    folder = tmp_path_factory.mktemp("cut")
    lines = whole.splitlines(keepends=True)
    # Batches come in another order than the data.
    mixed.shuffle(lines)
    (folder / NAME).write_bytes(b"".join(lines)[: place % len(whole)] + junk)
    answer(folder)
    assert (folder / NAME).read_bytes() == whole


def test_a_batch_that_was_kept_in_part_is_computed_anew_whole(tmp_path, whole):
    lines = whole.splitlines(keepends=True)
    (tmp_path / NAME).write_bytes(b"".join(lines[:4] + lines[5:]))
    shown, again = conditions_of(questions()), []

    def counted(k):
        again.append(k)
        return shown["asked"](k)

    answer(tmp_path, conditions={**shown, "asked": counted})
    tokens = [prompt_of(question, [])[0].shape[1] for question in questions()]
    names = [question.id for question in questions()]
    (batch,) = [some for some in make_batches(tokens, names, 3) if 4 in some]
    assert again == batch and len(batch) == 3


def test_probabilities_too_are_those_of_the_same_batches(tmp_path):
    for name, size in {"whole": 3, "cut": 3, "other": 4}.items():
        answer(tmp_path / name, candidates=RANKED, size=size)
    files = {name: tmp_path / name / NAME for name in ("whole", "cut", "other")}
    # In other batches the last digits are others.
    assert files["other"].read_bytes() != files["whole"].read_bytes()
    files["cut"].write_bytes(b"".join(files["whole"].read_bytes().splitlines(keepends=True)[::2]))
    answer(tmp_path / "cut", candidates=RANKED)
    assert files["cut"].read_bytes() == files["whole"].read_bytes()


def test_what_is_of_another_prompt_or_question_is_answered_anew(tmp_path, whole):
    lines = [json.loads(line) for line in whole.splitlines()]
    lines[2]["prompt_sha"] = "0" * 64
    lines[4]["id"] = "another"
    del lines[6]["blank"]
    lines[8]["prediction"] = 3
    lines[9]["probabilities"] = {"asked": [1.0], "blank": [1.0], "shuffled": [1.0]}
    for line in lines:
        if isinstance(line["prediction"], str) and line["id"] in ("q2", "q6", "q9"):
            line["prediction"] = "of another time"
    (tmp_path / NAME).write_text("\n".join(map(json.dumps, [*lines, [], None, "x"])))
    answer(tmp_path)
    assert (tmp_path / NAME).read_bytes() == whole


def test_of_a_finished_file_nothing_is_computed_and_scores_may_stand_in_it(tmp_path, whole):
    lines = [{**json.loads(line), "score": 1.0} for line in whole.splitlines()]
    (tmp_path / NAME).write_text("\n".join(map(json.dumps, lines)))

    def forbidden(k):
        raise AssertionError("a picture is read")

    conditions = dict.fromkeys(("asked", "blank", "shuffled"), forbidden)
    answered = answer(tmp_path, conditions=conditions)
    assert [one.texts["asked"] for one in answered] == [line["prediction"] for line in lines]
    assert (tmp_path / NAME).read_bytes() == whole


def test_candidates_are_ranked_as_one_by_one_and_the_likeliest_is_the_answer(tmp_path):
    model, processor = tiny()
    for normalise in (False, True):
        folder = tmp_path / str(normalise)
        answered = answer(folder, candidates=RANKED, normalise=normalise)
        for number, (one, question) in enumerate(zip(answered, questions(), strict=True)):
            for name, pictures in conditions_of(questions()).items():
                ids, pixels = prompt_of(question, pictures(number))
                scores = []
                for text in RANKED[number]:
                    more = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
                    both = torch.cat([ids, torch.tensor([more])], 1)
                    with torch.no_grad():
                        logits = model(both, pixel_values=pixels).logits[0].log_softmax(-1)
                    here = range(ids.shape[1] - 1, both.shape[1] - 1)
                    said = sum(logits[k, t] for k, t in zip(here, more, strict=True))
                    scores.append(said / len(more) if normalise else said)
                expected = torch.stack(scores).double().softmax(-1)
                found = torch.tensor(one.probabilities[name], dtype=torch.float64)
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
                assert one.texts[name] == RANKED[number][int(expected.argmax())]
        line = json.loads((folder / NAME).read_text().splitlines()[1])
        assert line["probabilities"] == answered[1].probabilities
    # Of very many candidates the answer alone is kept, and the file still goes on from there.
    many = [[f"{CHOICES[k % 5]} {k}" for k in range(101)]] * 11
    first = answer(tmp_path / "many", candidates=many)
    assert not first[0].probabilities and first[0].texts["asked"] in many[0]
    assert answer(tmp_path / "many", candidates=many) == first


def test_batches_go_from_long_to_short_whatever_the_order():
    asked = list(questions())
    tokens = [len(question.text) for question in asked]
    names = [question.id for question in asked]
    batches = make_batches(tokens, names, 4)
    assert sorted(k for batch in batches for k in batch) == list(range(11))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    flat = [tokens[k] for batch in batches for k in batch]
    assert flat == sorted(tokens, reverse=True)
    order = random.Random(1).sample(range(11), 11)
    moved = make_batches([tokens[k] for k in order], [names[k] for k in order], 4)
    assert [[order[k] for k in batch] for batch in moved] == batches


def test_each_picture_is_encoded_once_for_all_conditions(tmp_path, monkeypatch):
    model, _ = tiny()
    seen = []
    forward = type(model.vision_encoder).forward
    monkeypatch.setattr(
        type(model.vision_encoder),
        "forward",
        lambda self, pixel_values, **more: (
            seen.append(len(pixel_values)) or forward(self, pixel_values, **more)
        ),
    )
    answer(tmp_path, size=1)
    # Each of the questions' own, the grey one, and what stands where there is none.
    assert seen == [1] * (sum(question.pictures for question in questions()) + 2)


def test_too_long_a_question_is_named_before_anything_is_computed(tmp_path, monkeypatch):
    model, processor = tiny()
    longest = max(prompt_of(question, [])[0].shape[1] for question in questions())
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", longest + TOKENS - 1)
    answer(tmp_path / "fits")

    def forbidden(k):
        raise AssertionError("a picture is read")

    for options in ({"max_new_tokens": TOKENS + 1}, {"candidates": [["a", "b" * 7]] * 11}):
        conditions = {"asked": forbidden}
        with pytest.raises(UserError, match=r"record 8: a prompt of \d+ tokens and an answer"):
            answer(tmp_path / "long", conditions=conditions, **options)
    assert not (tmp_path / "long").exists()


def test_two_questions_of_one_id_are_refused(tmp_path):
    with pytest.raises(UserError, match="record 2: the id 'q1' is another question's too"):
        answer(tmp_path, [*questions()[:3], questions()[1]])


def test_a_picture_that_is_gone_names_its_record(tmp_path):
    conditions = {"asked": lambda k: ["gone.png"] * questions()[k].pictures}
    with pytest.raises(UserError, match=r"record \d+: .*gone.png"):
        answer(tmp_path, conditions=conditions)


def answer_in_world(folder):
    """Answer as one of several processes, and write down what this one got."""
    for name, candidates in {"generated": None, "ranked": RANKED}.items():
        answered = answer(folder / name, candidates=candidates)
        rank = Accelerator(cpu=True).process_index
        (folder / f"{name}.{rank}").write_text(repr(answered))
    Accelerator(cpu=True).end_training()


@pytest.mark.slow
def test_two_processes_answer_as_one_also_what_one_began(tmp_path):
    for name, candidates in {"generated": None, "ranked": RANKED}.items():
        answer(tmp_path / "one" / name, candidates=candidates)
        begun = (tmp_path / "one" / name / NAME).read_bytes()
        (tmp_path / "two" / name).mkdir(parents=True)
        (tmp_path / "two" / name / NAME).write_bytes(begun[: len(begun) // 3 + 5])
    all_well(in_world(2, lambda: answer_in_world(tmp_path / "two"), tmp_path))
    for name in ("generated", "ranked"):
        files = [(tmp_path / n / name / NAME).read_bytes() for n in ("one", "two")]
        assert files[0] == files[1]
        assert os.listdir(tmp_path / "two" / name) == [NAME]
        both = [(tmp_path / "two" / f"{name}.{rank}").read_text() for rank in (0, 1)]
        assert both[0] == both[1]

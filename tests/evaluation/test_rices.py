"""The most similar pictures, against brute force: each picture alone, all sorted by numpy."""

import copy
import json
import os
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.tiny import TOWERS, byte_tokenizer, flamingo, flamingo_config, processor_of, speaking
from tests.worlds import all_well, in_world
from tuninglab.data.sample import Sample
from tuninglab.errors import UserError
from tuninglab.evaluation import rices
from tuninglab.evaluation.questions import question_of
from tuninglab.evaluation.rices import PooledVectors, Similar, best_first, pooled, similarities
from tuninglab.evaluation.shots import FewShot, Pool
from tuninglab.training.hardware import accelerator_in

WORDS = byte_tokenizer()


def seeing(kind="clip_vision_model", **sizes):
    """A Flamingo of such a tower that tells pictures apart."""
    text, tokens = speaking(WORDS, num_hidden_layers=2)
    config = flamingo_config("llama", text, sizes, kind, **tokens)
    model = flamingo(config, 0.5)
    torch.manual_seed(1)
    for parameter in model.vision_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


MODEL, PROCESSOR = seeing(), processor_of(WORDS)


def noise(seed, size=(16, 16)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def sample(question, *pictures, **known):
    content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
    said = {"role": "assistant", "content": [{"type": "text", "text": f"answer to {question}"}]}
    messages = [{"role": "user", "content": content}, said]
    return Sample(messages, list(pictures), f"set.json, {question}", **known)


def asked(name, *pictures):
    return question_of(sample(name, *pictures, id=name), name)


def vectors(place, model=MODEL):
    return PooledVectors(model, PROCESSOR, place, accelerator_in("fp32"))


def alone(picture, model=MODEL):
    """The vector of one picture, by transformers' own model and numpy."""
    pixels = PROCESSOR.image_processor([picture.convert("RGB")], return_tensors="pt")
    with torch.no_grad():
        found = model.vision_encoder(**pixels).pooler_output[0].double().numpy()
    return (found / np.linalg.norm(found)).astype(np.float16)


def texts(examples):
    return [example.text for example in examples]


def units(count, width, seed=0):
    drawn = np.random.default_rng(seed).normal(size=(count, width))
    return torch.tensor(drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).half()


def test_similarities_are_exact(monkeypatch):
    monkeypatch.setattr(rices, "ROWS_AT_A_TIME", 3)
    asked, matrix = units(4, 768), units(10, 768, seed=1)
    # Numbers too small for float16's usual form, too.
    matrix[0, :700] *= 1e-4
    found = similarities(asked, matrix)
    assert found.shape == (4, 10)
    for row, one in enumerate(asked.tolist()):
        for column, other in enumerate(matrix.tolist()):
            exact = sum(Fraction(a) * Fraction(b) for a, b in zip(one, other, strict=True))
            assert Fraction(found[row, column].item()) == exact


@given(
    values=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    first=st.integers(1, 7),
)
def test_the_order_is_that_of_a_stable_sort(values, first):
    before = rices.SORTED_FIRST
    rices.SORTED_FIRST = first
    try:
        found = list(best_first(torch.tensor(values, dtype=torch.float64)))
    finally:
        rices.SORTED_FIRST = before
    assert found == sorted(range(len(values)), key=lambda k: (-values[k], k))


@pytest.mark.parametrize("kind", TOWERS)
def test_vectors_are_what_each_tower_pools(kind):
    model, pictures = seeing(kind), [noise(seed) for seed in range(5)]
    pixels = PROCESSOR.image_processor(pictures, return_tensors="pt")["pixel_values"]
    found = pooled(model.vision_encoder, pixels).numpy()
    for row, picture in zip(found, pictures, strict=True):
        np.testing.assert_allclose(row, alone(picture, model), atol=1e-3)
        assert np.linalg.norm(row.astype(np.float64)) == pytest.approx(1, abs=2e-3)


def test_a_tower_that_pools_nothing_is_refused():
    model = seeing("siglip_vision_model", vision_use_head=False)
    with pytest.raises(UserError, match="pools nothing .* Take --select random"):
        pooled(model.vision_encoder, torch.zeros(1, 3, 16, 16))


def test_a_tower_whose_numbers_overflow_is_refused():
    model = seeing()
    model.vision_encoder.post_layernorm.bias.data[0] = float("nan")
    with pytest.raises(UserError, match="not finite, in torch.float32. Take --precision fp32"):
        pooled(model.vision_encoder, torch.zeros(2, 3, 16, 16))


def test_a_vector_does_not_depend_on_the_others():
    pictures = [noise(seed) for seed in range(40)]
    pixels = PROCESSOR.image_processor(pictures, return_tensors="pt")["pixel_values"]
    whole = pooled(MODEL.vision_encoder, pixels)
    for count in (1, 7, 17):
        assert torch.equal(pooled(MODEL.vision_encoder, pixels[-count:]), whole[-count:])


def brute_force(pool, question, count):
    """The nearest pictures last, without those of the question, of equals the earlier one."""
    own = alone(question.sample.images[-1]).astype(np.float64)
    scores = [
        (-float(own @ alone(one.sample.images[-1]).astype(np.float64)), number)
        for number, one in enumerate(pool)
        if one.sample.images
        and not {i.tobytes() for i in one.sample.images}
        & {i.tobytes() for i in question.sample.images}
    ]
    return [pool[number].text for _, number in sorted(scores)[:count]][::-1]


def test_examples_are_those_of_brute_force(tmp_path, monkeypatch):
    monkeypatch.setattr(rices, "SORTED_FIRST", 3)
    monkeypatch.setattr(rices, "QUESTIONS_AT_A_TIME", 2)
    data = [sample(f"row {n}", noise(n % 20)) for n in range(30)]
    # One shows two pictures, the last of which counts; two show none.
    data += [sample("row 30", noise(3), noise(100)), sample("row 31"), sample("row 32")]
    data.append(sample("row 33", noise(200)))
    pool = Pool(data)
    questions = [asked(f"q{n}", noise(n)) for n in (3, 7, 15, 50, 51)]
    # As similar as can be, and not equal: one pixel is black.
    near = noise(200)
    near.putpixel((0, 0), (0, 0, 0))
    questions.append(asked("q two", noise(4), near))
    found = Similar(pool, questions, 5, vectors(tmp_path))
    for question in questions:
        assert texts(found.of(question, 5)) == brute_force(pool, question, 5)
        assert texts(found.of(question, 2)) == brute_force(pool, question, 2)
    assert texts(found.of(questions[-1], 1)) == ["row 33"]


def test_the_order_of_questions_changes_nothing(tmp_path):
    pool = Pool([sample(f"row {n}", noise(n)) for n in range(25)])
    questions = [asked(f"q{n}", noise(100 + n)) for n in range(9)]
    whole = Similar(pool, questions, 4, vectors(tmp_path / "a"))
    some = Similar(pool, questions[5:2:-1], 4, vectors(tmp_path / "b"))
    for question in questions[3:6]:
        assert texts(some.of(question, 4)) == texts(whole.of(question, 4))


def test_the_prompt_shows_the_nearest_last(tmp_path):
    pool = Pool([sample(f"row {n}", noise(n)) for n in range(6)])
    question = asked("q", noise(100))
    few = FewShot(PROCESSOR, Similar(pool, [question], 3, vectors(tmp_path)), 3)
    wanted = brute_force(pool, question, 3)
    said = [turn["content"][1]["text"] for turn in few.turns(question)[::2]]
    assert said == [*wanted, "q"]
    numbers = [int(name.split()[1]) for name in wanted]
    shown = [image.tobytes() for image in few.images(question, question.sample.images)]
    assert shown == [noise(n).tobytes() for n in (*numbers, 100)]


def test_what_cannot_be_compared_is_named(tmp_path):
    pool = Pool([sample("row 0", noise(0)), sample("row 1")])
    with pytest.raises(UserError, match="^set.json, blind has no picture, .*--select random"):
        Similar(pool, [asked("q", noise(1)), asked("blind")], 1, vectors(tmp_path))
    with pytest.raises(UserError, match="^set.json, q: 2 examples .* of 2 records only 1 may"):
        Similar(pool, [asked("q", noise(1))], 2, vectors(tmp_path))
    with pytest.raises(UserError, match="of 1 records only 0 may"):
        Similar(Pool([sample("row 1")]), [asked("q", noise(1))], 1, vectors(tmp_path))


class Counted:
    """How many pictures a tower has read."""

    def __init__(self, monkeypatch):
        self.pictures, real = 0, rices.pooled

        def counting(tower, pixels):
            self.pictures += len(pixels)
            return real(tower, pixels)

        monkeypatch.setattr(rices, "pooled", counting)

    def since(self):
        """Since it was asked last, without the blank one that each start reads."""
        seen, self.pictures = self.pictures, 0
        return seen - 1


def test_vectors_are_computed_once_and_anew_for_another_tower(tmp_path, monkeypatch):
    pictures = []
    for number in range(20):
        noise(number).save(tmp_path / f"{number}.png")
        pictures.append(tmp_path / f"{number}.png")
    counted, place = Counted(monkeypatch), tmp_path / "kept"
    first = vectors(place).of([*pictures, pictures[0]])
    # The same file twice is one.
    assert counted.since() == 20 and torch.equal(first[0], first[20])
    assert torch.equal(vectors(place).of(pictures[::-1]), first[:20].flip(0))
    assert counted.since() == 0
    # Another picture under a name that is known, though of the same size.
    data = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes((tmp_path / "4.png").read_bytes())
    os.utime(tmp_path / "3.png", ns=(0, 0))
    assert torch.equal(vectors(place).of(pictures)[3], first[4])
    (tmp_path / "3.png").write_bytes(data)
    assert counted.since() == 0
    other = copy.deepcopy(MODEL)
    with torch.no_grad():
        next(other.vision_encoder.parameters())[0] += 0.5
    changed = vectors(place, other).of(pictures)
    assert counted.since() == 20 and not torch.equal(changed, first[:20])
    # Both are kept.
    assert torch.equal(vectors(place).of(pictures), first[:20]) and counted.since() == 0
    assert len(list(place.iterdir())) == 2


def test_a_start_that_was_killed_is_gone_on_with(tmp_path, monkeypatch):
    pictures = [noise(number) for number in range(50)]
    whole = vectors(tmp_path / "whole").of(pictures)
    monkeypatch.setattr(rices, "GROUPS_AT_A_TIME", 1)
    counted = Counted(monkeypatch)
    counting = rices.pooled

    def killed(tower, pixels):
        if counted.pictures > 30:
            raise KeyboardInterrupt
        return counting(tower, pixels)

    monkeypatch.setattr(rices, "pooled", killed)
    with pytest.raises(KeyboardInterrupt):
        vectors(tmp_path / "kept").of(pictures)
    assert counted.since() == 32
    monkeypatch.setattr(rices, "pooled", counting)
    assert torch.equal(vectors(tmp_path / "kept").of(pictures), whole)
    assert counted.since() == 50 - 32


def test_the_mode_of_the_model_stays(tmp_path):
    model = seeing(attention_dropout=0.5).train()
    found = vectors(tmp_path, model).of([noise(0)])
    assert model.training and model.vision_encoder.training
    np.testing.assert_allclose(found[0].numpy(), alone(noise(0), model.eval()), atol=1e-3)


def search(folder):
    """Search as one of several processes, and write down what was found and how much encoded."""
    accelerator = Accelerator(cpu=True)
    seen, real = [], rices.pooled
    rices.GROUPS_AT_A_TIME = 2
    rices.pooled = lambda tower, pixels: (seen.append(len(pixels)), real(tower, pixels))[1]
    vectors = PooledVectors(MODEL, PROCESSOR, folder / "kept", accelerator)
    questions = [asked(f"q{n}", noise(500 + n)) for n in range(5)]
    pool = Pool([sample(f"row {n}", noise(n)) for n in range(70)])
    found = Similar(pool, questions, 3, vectors)
    rows = {question.id: texts(found.of(question, 3)) for question in questions}
    said = json.dumps([rows, sum(seen) - 1])
    (folder / f"{accelerator.process_index}.json").write_text(said)
    accelerator.end_training()


@pytest.mark.slow
def test_two_processes_share_the_work_and_find_the_same(tmp_path):
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        all_well(in_world(processes, partial(search, folder), folder))
    one = json.loads((tmp_path / "1" / "0.json").read_text())
    ranks = [json.loads((tmp_path / "2" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert one[1] == 75 and sum(count for _, count in ranks) == 75
    assert min(count for _, count in ranks) > 20
    assert all(rows == one[0] for rows, _ in ranks)

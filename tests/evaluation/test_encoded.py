"""Pictures that are answered about again: encoded once, and answered about as if they were not."""

import pytest
import torch

from tests.tiny import processor_of, tiny_tokenizer
from tuninglab.data.reading.splits import read_splits
from tuninglab.evaluation.answers import generate_answers
from tuninglab.evaluation.conditions import Blanked, Shuffled
from tuninglab.evaluation.encoded import EncodedPictures

MARKS = [[2], [], [3, 5], [4, 6, 8]]
OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.fixture
def encoded(monkeypatch):
    """How many pictures each call of a tower got."""
    from transformers import CLIPVisionModel as Tower

    seen, forward = [], Tower.forward
    monkeypatch.setattr(
        Tower,
        "forward",
        lambda self, pixel_values, **more: (
            seen.append(len(pixel_values)) or forward(self, pixel_values, **more)
        ),
    )
    return seen


def test_controls_and_later_answers_encode_nothing_anew(tiny_flamingo, tiny_data, encoded):
    model, processor = tiny_flamingo().requires_grad_(False), processor_of(tiny_tokenizer())
    samples = read_splits(str(tiny_data)).train
    with_pictures = [sample for sample in samples if sample.images]
    asked = [samples, Blanked(samples), Shuffled(with_pictures, ["all"] * 11), samples]
    plain = [generate_answers(model, processor, some, 5, 4) for some in asked]
    before, pictures = sum(encoded), EncodedPictures()
    encoded.clear()
    for some, answers in zip(asked, plain, strict=True):
        assert generate_answers(model, processor, some, 5, 4, pictures=pictures) == answers
    # Eleven, the grey one, and what stands where the last sample has none.
    assert before == 4 * 11 and sum(encoded) == 13


@pytest.mark.parametrize("trained", [None, "perceiver", "vision_encoder"])
@pytest.mark.parametrize("most_bytes", [2**20, 700, 0])
def test_texts_are_the_same_whatever_trains_and_however_little_is_kept(
    make_flamingo, make_batch, encoded, trained, most_bytes
):
    model, batch = make_flamingo().requires_grad_(False), make_batch(MARKS)
    if trained:
        model.get_submodule(trained).requires_grad_(True)
    pictures = EncodedPictures(most_bytes)
    for _ in range(2):
        encoded.clear()
        with torch.inference_mode():
            inputs = pictures.encoded(model, batch)
            found = model.generate(**inputs, **OPTIONS)
        calls = sum(encoded)
        assert torch.equal(found, model.generate(**batch, **OPTIONS))
        assert sum(row.nbytes for row in pictures.kept.values()) <= most_bytes
        # What trains may change between two answers: nothing of it was kept.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 if parameter.requires_grad else 0.0)
    if trained == "vision_encoder":
        assert inputs == batch and not pictures.kept
    else:
        assert ("patch_features" if trained else "image_features") in inputs
        # Of 4 rows x 3 pictures a row of latents has 480 bytes, one of patches 384.
        assert calls == {2**20: 0, 700: 11, 0: 12}[most_bytes]


def test_texts_alone_stay_as_they_are(make_flamingo, make_batch):
    model, batch = make_flamingo().requires_grad_(False), make_batch([[], []])
    for pixels in (torch.zeros(2, 0, 1, 3, 16, 16), None):
        given = batch | {"pixel_values": pixels}
        assert EncodedPictures().encoded(model, given) == given


def test_in_groups_of_one_size_a_picture_comes_out_alike_in_any_company(
    make_flamingo, make_batch, encoded
):
    model, batch = make_flamingo().requires_grad_(False), make_batch(MARKS)
    pixels = batch["pixel_values"][:, :2].contiguous()
    sizes, found = [], []
    for some in ([0, 1, 2, 3], [3], [2, 0], [1, 3, 2]):
        encoded.clear()
        pictures = EncodedPictures(group=3)
        made = pictures.encoded(model, {"pixel_values": pixels[some]})["image_features"]
        found += zip(some, made, strict=True)
        sizes.append(list(encoded))
    # Two pictures a row, always three at a time.
    assert sizes == [[3, 3, 3], [3], [3, 3], [3, 3]]
    first = dict(found[:4])
    assert all(torch.equal(made, first[row]) for row, made in found)
    torch.testing.assert_close(model.encode_images(pixels), torch.stack([*first.values()]))


def test_repeatable_pictures_take_a_share_of_the_memory_that_is_free(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr("tuninglab.evaluation.encoded.free_memory_bytes", lambda device: 2**34)
    assert [EncodedPictures.repeatable(cpu, size).group for size in (1, 5, 64)] == [1, 5, 8]
    assert EncodedPictures.repeatable(cpu, 1).left == 2**31
    # Whatever is free, what a run keeps.
    monkeypatch.setattr("tuninglab.evaluation.encoded.free_memory_bytes", lambda device: 0)
    assert EncodedPictures.repeatable(cpu, 1).left == EncodedPictures().left

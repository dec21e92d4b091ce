import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from tuninglab.data import batches
from tuninglab.data.batches import Collator, SampleDataset, image_pixels
from tuninglab.data.prompt import encode_prompt
from tuninglab.data.sample import Sample
from tuninglab.data.sampler import MaskedRow, StepSampler
from tuninglab.errors import UserError

RED = Image.new("RGB", (10, 6), "red")


def sample(images=1, words=1, origin="x"):
    question = {"role": "user", "content": "<image>" * images + "what is it? " * words}
    reply = {"role": "assistant", "content": "red"}
    return Sample([question, reply], [RED] * images, origin=origin)


SAMPLES = [sample(count, words=count + 1, origin=f"record {count}") for count in (0, 1, 3)]


def collator(processor, **options):
    return Collator(processor.tokenizer.pad_token_id, 8, **options)


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_with_no_one_and_many_images_make_a_batch(processor, side):
    rows = [SampleDataset(SAMPLES, processor)[index] for index in range(3)]
    batch = collator(processor, padding_side=side)(rows)
    assert batch.inputs["pixel_values"].shape == (3, 3, 1, 3, 8, 8)
    assert batch.sample_ids == ["record 0", "record 1", "record 3"]
    for index, row in enumerate(rows):
        mask = batch.inputs["attention_mask"][index].bool()
        assert batch.inputs["input_ids"][index][mask].tolist() == row["input_ids"]
        assert batch.inputs["labels"][index][mask].tolist() == row["labels"]
        assert (batch.inputs["input_ids"][index][~mask] == processor.tokenizer.pad_token_id).all()
        assert (batch.inputs["labels"][index][~mask] == -100).all()
        padding = (~mask).nonzero().flatten()
        assert side == "right" or padding.tolist() == list(range(len(padding)))
        count = len(SAMPLES[index].images)
        pixels = batch.inputs["pixel_values"][index]
        assert (pixels[count:] == 0).all() and (pixels[:count] != 0).any(dim=-1).all()


def test_counts_are_those_of_the_tensors(processor):
    dataset = SampleDataset(SAMPLES, processor)
    batch = collator(processor)([dataset[0], dataset[MaskedRow(2)], dataset[1]])
    learned = batch.inputs["labels"] != -100
    assert batch.answer_tokens == learned.sum() > 0
    assert batch.tokens == batch.inputs["attention_mask"][learned.any(dim=1)].sum()
    assert batch.tokens < batch.inputs["attention_mask"].sum() and batch.samples == 2


def test_a_batch_is_moved_and_pinned_whole(processor, monkeypatch):
    batch = collator(processor)([SampleDataset(SAMPLES, processor)[1]])
    there = batch.to(torch.device("meta"))
    assert all(value.is_meta for value in there.inputs.values())
    assert not any(value.is_meta for value in batch.inputs.values())
    # Without a GPU nothing can be pinned: what matters is that the DataLoader finds the way.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor + 1)
    pinned = pin_memory(batch)
    for other in (there, pinned):
        assert replace(other, inputs={}) == replace(batch, inputs={})
    for name, value in batch.inputs.items():
        assert torch.equal(pinned.inputs[name], value + 1)


def test_pixels_are_the_processors_own(processor):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    expected = processor.image_processor(images=noise, return_tensors="pt")["pixel_values"]
    assert torch.equal(image_pixels([noise], processor.image_processor)[:, 0], expected)
    assert image_pixels([], processor.image_processor) is None


def test_many_large_pictures_are_taken_in_turns_to_the_same_pixels(processor, monkeypatch):
    generator = np.random.default_rng(0)
    shapes = [(20, 30, 3), (9, 7, 3), (30, 20, 3), (8, 8, 3), (20, 30, 3)]
    pictures = [Image.fromarray(generator.integers(0, 256, s, dtype=np.uint8)) for s in shapes]
    together = image_pixels(pictures, processor.image_processor)
    for most in (0, 620, 1000):
        monkeypatch.setattr(batches, "MOST_HELD", most)
        assert torch.equal(image_pixels(pictures, processor.image_processor), together)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 3), (3, 50), (4, 1)])
def test_pictures_of_any_shape_reach_the_tower(processor, size):
    pixels = image_pixels([Image.new("RGB", size, "red")], processor.image_processor)
    red = image_pixels([RED], processor.image_processor)
    assert torch.allclose(pixels, red)


def test_a_batch_without_images_gets_a_blank_one(processor):
    rows = [SampleDataset([sample(0), sample(0)], processor)[index] for index in range(2)]
    assert rows[0]["pixel_values"] is None
    pixels = collator(processor)(rows).inputs["pixel_values"]
    assert pixels.shape == (2, 1, 1, 3, 8, 8) and (pixels == 0).all()


def test_rows_with_other_numbers_of_frames_are_refused(processor):
    dataset = SampleDataset([sample(1, origin="still"), sample(1, origin="film")], processor)
    still, film = dataset[0], dataset[1]
    film["pixel_values"] = film["pixel_values"].expand(-1, 4, -1, -1, -1)
    assert collator(processor)([film, film]).inputs["pixel_values"].shape[2] == 4
    for rows in ([still, film], [film, still]):
        with pytest.raises(ValueError, match="differ within a batch") as caught:
            collator(processor)(rows)
        assert "1 in still" in str(caught.value) and "4 in film" in str(caught.value)


def test_a_masked_row_has_no_labels(processor):
    dataset = SampleDataset(SAMPLES, processor)
    row, masked = dataset[1], dataset[MaskedRow(1)]
    assert masked["input_ids"] == row["input_ids"]
    assert set(masked["labels"]) == {-100} != set(row["labels"])


def test_prompts_end_where_the_answer_starts(processor):
    row = SampleDataset(SAMPLES, processor, prompts_only=True)[1]
    assert row["input_ids"] == encode_prompt(SAMPLES[1].messages[:-1], processor.tokenizer)
    assert "labels" not in row
    assert set(collator(processor)([row]).inputs) == {"input_ids", "attention_mask", "pixel_values"}


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_with_workers_follows_the_sampler(processor, workers):
    sampler = StepSampler(len(SAMPLES), batch_size=1, world_size=2, rank=1, seed=1)
    loader = DataLoader(
        SampleDataset(SAMPLES, processor),
        batch_sampler=sampler,
        collate_fn=collator(processor),
        num_workers=workers,
    )
    batches, rows = list(loader), list(sampler)
    assert len(batches) == len(rows) == len(sampler) == 2
    for batch, (row,) in zip(batches, rows, strict=True):
        assert batch.sample_ids == [SAMPLES[row].origin]
    # Three rows for two ranks: the second one's last place is filled without labels.
    assert (batches[0].inputs["labels"] != -100).any() and (
        batches[1].inputs["labels"] == -100
    ).all()


def test_the_data_set_can_be_pickled(processor):
    dataset = SampleDataset(SAMPLES, processor)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[1]["pixel_values"], dataset[1]["pixel_values"])
    assert isinstance(pickle.loads(pickle.dumps(MaskedRow(3))), MaskedRow)


def test_a_picture_that_vanished_is_named(processor, tmp_path):
    gone = sample(1, origin="my.json, record 1")
    gone.images = [tmp_path / "gone.png"]
    with pytest.raises(UserError, match="my.json, record 1: picture .*gone.png' does not exist"):
        SampleDataset([gone], processor)[0]


def test_the_collator_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="'middle'"):
        Collator(0, 8, padding_side="middle")
    with pytest.raises(ValueError, match="pad_token_id is None"):
        Collator(None, 8)

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tuninglab.data import packing
from tuninglab.data.batches import Collator, SampleDataset
from tuninglab.data.orders import FileOrder, MixedOrder, Permutation
from tuninglab.data.packing import (
    GroupedOrder,
    PackedCollator,
    PackedDataset,
    PackedOrder,
    first_fit,
)
from tuninglab.data.sample import Sample
from tuninglab.data.sampler import MaskedRow, StepSampler
from tuninglab.errors import UserError

RED = Image.new("RGB", (10, 6), "red")
RECORDS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 4)), min_size=1, max_size=60)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(packing, "WINDOW", 16)
    monkeypatch.setattr(packing, "WINDOW_STEPS", 3)


def arrays(records):
    lengths, pictures = np.array(records, np.int64).T
    return lengths, pictures


@given(records=RECORDS, tokens=st.integers(8, 40), images=st.integers(1, 6))
def test_first_fit_decreasing_is_that_of_the_textbook(records, tokens, images):
    bins: list[list[int]] = []
    for row in sorted(range(len(records)), key=lambda row: -records[row][0]):
        for held in bins:
            sums = [sum(records[r][k] for r in [*held, row]) for k in (0, 1)]
            if sums[0] <= tokens and sums[1] <= images:
                held.append(row)
                break
        else:
            bins.append([row])
    place = first_fit(*arrays(records), tokens, images)
    assert [np.flatnonzero(place == n).tolist() for n in range(place.max() + 1)] == [
        sorted(held) for held in bins
    ]


@given(
    records=RECORDS,
    tokens=st.integers(8, 40),
    images=st.none() | st.integers(1, 6),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 3),
)
def test_bins_hold_each_row_once_and_no_more_than_they_may(records, tokens, images, seed, epoch):
    order = PackedOrder(Permutation(len(records)), *arrays(records), tokens, images)
    order = pickle.loads(pickle.dumps(order))
    bins = order.rows(seed, epoch)
    assert len(bins) == order.count(seed, epoch)
    assert sorted(row for held in bins for row in held) == list(range(len(records)))
    for held in bins:
        sums = [sum(records[row][k] for row in held) for k in (0, 1)]
        assert len(held) == 1 or (sums[0] <= tokens and sums[1] <= (images or 10**9))
    # Those of a window of the epoch's order stay together.
    of_window = np.empty(len(records), np.int64)
    of_window[Permutation(len(records)).rows(seed, epoch)] = np.arange(len(records)) // 16
    windows = [{int(of_window[row]) for row in held} for held in bins]
    assert all(len(found) == 1 for found in windows) and windows == sorted(windows, key=min)
    filled = sum(min(tokens, sum(records[row][0] for row in held)) for held in bins)
    assert order.fill(bins) == pytest.approx(filled / (tokens * len(bins)))


def test_bins_are_shuffled_and_depend_on_seed_and_epoch_alone():
    lengths = np.arange(1, 65)
    order = PackedOrder(FileOrder(64), lengths, np.zeros(64, np.int64), 64)
    made = [list(order.rows(*pair)) for pair in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert made[0] == made[3] and made[0] != made[1] != made[2]
    # The same bins in a file's order, but in another one of their own.
    assert sorted(made[0]) == sorted(made[1])


@given(
    lengths=st.lists(st.integers(1, 99), min_size=1, max_size=70),
    size=st.integers(1, 6),
    seed=st.integers(0, 2**40),
)
def test_grouping_puts_neighbours_in_length_into_a_step_and_loses_no_row(lengths, size, seed):
    plain = Permutation(len(lengths))
    order = pickle.loads(pickle.dumps(GroupedOrder(plain, np.array(lengths), size)))
    rows, base = order.rows(seed, 1).tolist(), plain.rows(seed, 1).tolist()
    assert order.count(seed, 1) == len(lengths) and sorted(rows) == sorted(base)
    whole = len(rows) - len(rows) % size
    assert rows[whole:] == base[whole:]
    for first in range(0, whole, 3 * size):
        window = base[first : min(first + 3 * size, whole)]
        by_length = sorted(window, key=lambda row: lengths[row])
        steps = [by_length[at : at + size] for at in range(0, len(by_length), size)]
        found = rows[first : first + len(window)]
        assert sorted(found[at : at + size] for at in range(0, len(found), size)) == sorted(steps)


@given(records=RECORDS, taken=st.integers(0, 12), seed=st.integers(0, 2**40), grouped=st.booleans())
def test_two_processes_go_on_with_the_bins_of_one(records, taken, seed, grouped):
    lengths, pictures = arrays(records)
    plain = MixedOrder((len(records),), (len(records) + 3,))
    order = GroupedOrder(plain, lengths, 4)
    if not grouped:
        order = PackedOrder(plain, lengths, pictures, 30, 5)
    one = StepSampler(len(records), 4, seed=seed, order=order)
    for _ in range(taken):
        one.advance()
    ranks = [StepSampler(len(records), 2, 1, rank, 2, seed, order=order) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(one.state_dict())
    batches = [iter(rank) for rank in ranks]
    for whole in one:
        parts = [next(batch) for batch in batches]
        real = [[held for held in part if not isinstance(held, MaskedRow)] for part in parts]
        assert real == [whole[0::2], whole[1::2]]


def test_bins_of_other_lengths_cannot_be_gone_on_with():
    def sampler(lengths):
        order = PackedOrder(Permutation(3), np.array(lengths), np.zeros(3, np.int64), 30)
        return StepSampler(3, 1, order=order)

    with pytest.raises(UserError, match="the order of the data was"):
        sampler([3, 4, 6]).load_state_dict(sampler([3, 4, 5]).state_dict())


def sample(images, words, origin):
    question = {"role": "user", "content": "<image>" * images + "what is it? " * words}
    return Sample([question, {"role": "assistant", "content": "red"}], [RED] * images, origin)


SAMPLES = [sample(count, count + 1, f"record {count}") for count in (0, 1, 3, 0)]


def packed(processor, **options):
    mark = processor.tokenizer.convert_tokens_to_ids("<image>")
    collator = PackedCollator(Collator(processor.tokenizer.pad_token_id, 8), mark, **options)
    return PackedDataset(SampleDataset(SAMPLES, processor)), collator


def test_a_packed_row_is_its_documents_one_after_the_other(processor):
    dataset, collator = packed(processor)
    rows = [SampleDataset(SAMPLES, processor)[number] for number in range(4)]
    batch = collator([dataset[(2, 0, 1)], dataset[(3,)]])
    assert set(batch.inputs) == {"input_ids", "labels", "documents", "pixel_values"}
    expected = [[rows[2], rows[0], rows[1]], [rows[3]]]
    for index, documents in enumerate(expected):
        numbers = batch.inputs["documents"][index]
        for number, row in enumerate(documents):
            here = numbers == number
            assert batch.inputs["input_ids"][index][here].tolist() == row["input_ids"]
            labels = batch.inputs["labels"][index][here].tolist()
            assert labels[0] == -100 and labels[1:] == row["labels"][1:]
        padding = numbers == -1
        assert padding.sum() == len(numbers) - sum(len(row["input_ids"]) for row in documents)
        assert (batch.inputs["labels"][index][padding] == -100).all()
    pixels = batch.inputs["pixel_values"]
    assert pixels.shape == (2, 4, 1, 3, 8, 8)
    assert torch.equal(pixels[0], torch.cat([rows[2]["pixel_values"], rows[1]["pixel_values"]]))
    assert not pixels[1].any()
    # Counted are documents.
    learned = batch.inputs["labels"] != -100
    assert (batch.samples, batch.answer_tokens) == (4, learned.sum())
    assert batch.tokens == sum(len(row["input_ids"]) for row in rows)
    assert batch.sample_ids == ["record 3", "record 0", "record 1", "record 0"]


def test_all_bins_may_become_one_row_and_a_filler_has_no_labels(processor):
    dataset, collator = packed(processor, one_row=True)
    batch = collator([dataset[(2, 0)], dataset[MaskedRow(1)]])
    assert batch.inputs["input_ids"].shape[0] == 1 and (batch.inputs["documents"] >= 0).all()
    assert batch.inputs["documents"].unique_consecutive().tolist() == [0, 1, 2]
    last = batch.inputs["documents"] == 2
    assert (batch.inputs["labels"][last] == -100).all() and batch.samples == 2


def test_features_of_rows_without_pictures_stay_out(processor):
    mark = processor.tokenizer.convert_tokens_to_ids("<image>")
    collator = PackedCollator(Collator(0, 8), mark)
    texts = {"labels": [5, 5], "sample_id": "x"}
    blank = {"input_ids": [5, 5], "image_features": torch.zeros(1, 2, 3), **texts}
    seen = {"input_ids": [mark, mark], "image_features": torch.ones(2, 2, 3), **texts}
    batch = collator([[blank, seen, blank], [blank]])
    features = batch.inputs["image_features"]
    assert features.shape == (2, 2, 2, 3) and features[0].all() and not features[1].any()


def test_films_of_other_lengths_in_a_bin_are_refused(processor):
    mark = processor.tokenizer.convert_tokens_to_ids("<image>")
    rows = [
        {"input_ids": [mark], "labels": [1], "sample_id": name, "pixel_values": torch.ones(shape)}
        for name, shape in (("a", (1, 1, 3, 8, 8)), ("b", (1, 4, 3, 8, 8)))
    ]
    with pytest.raises(ValueError, match="frames .* differ .*1 in a, 4 in b"):
        PackedCollator(Collator(0, 8), mark)([rows])

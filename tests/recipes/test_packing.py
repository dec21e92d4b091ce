"""Runs on packed and on grouped rows learn what runs on padded rows learn."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.tiny import COLOURS
from tuninglab.adapters.lora import tune
from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.data.batches import Collator, SampleDataset
from tuninglab.data.packing import PackedCollator, PackedDataset
from tuninglab.data.sample import Sample
from tuninglab.errors import UserError
from tuninglab.models.build import load_flamingo
from tuninglab.recipes.flamingo import finetune
from tuninglab.recipes.row_orders import padding_share
from tuninglab.savers import add_savers, checkpoint_blocks


def dialogue(*names):
    """A question about some pictures, and one about none of them, each with its answer."""
    asked = ("user", "<image>then " * len(names) + "colour?" + " again" * len(names))
    turns = [asked, ("assistant", " ".join(names) or "none"), ("user", "sure?"), ("assistant", "y")]
    pictures = [Image.new("RGB", (16, 16), COLOURS[name]) for name in names]
    return Sample([{"role": role, "content": text} for role, text in turns], pictures, "x")


SAMPLES = [dialogue(*names) for names in (["red"], [], ["green", "blue", "red"], [], ["blue"])]
BINS = [(0, 1, 2, 3), (4, 1)]


def gradients(model, batches, count):
    """Loss and gradients of all batches together, each with `count` answer tokens in all."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        only = {"labels_only_logits": True, "loss_only": True, "use_cache": False}
        loss = model(**batch.inputs, **only, num_items_in_batch=count).loss
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", ["previous", "next-v1"])
@pytest.mark.parametrize("saving", [False, True])
def test_loss_and_gradients_are_those_of_padded_rows_and_of_each_alone(
    tiny_flamingo, tiny_bases, mode, saving
):
    processor = load_flamingo(tiny_bases["plain"])[1]
    model = tiny_flamingo().requires_grad_(False)
    model.config.media_mode = mode
    # Pictures are seen, and what they give to the loss is no rounding.
    model.perceiver.requires_grad_(True)
    if saving:
        add_savers(model, ["norm", "glu", "attention", "loss", "embedding", "norm_rows"])
    model = tune(model, FinetuneConfig().tuning_config).train()
    model.base_model.model.perceiver.requires_grad_(True)
    model.base_model.model.vision_encoder.eval()
    if saving:
        assert checkpoint_blocks(model, 1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    rows = SampleDataset(SAMPLES, processor)
    collate = Collator(processor.tokenizer.pad_token_id, processor.image_size)
    chosen = [number for held in BINS for number in held]
    padded = collate([rows[number] for number in chosen])
    mark = model.config.image_token_id
    bins = [PackedDataset(rows)[held] for held in BINS]
    count = padded.answer_tokens
    loss, expected = gradients(model, [padded], count)
    assert loss > 1 and any("perceiver" in name for name in expected)
    ways = {
        "alone": [collate([rows[number]]) for number in chosen],
        "packed": [PackedCollator(collate, mark)(bins)],
        "one row": [PackedCollator(collate, mark, one_row=True)(bins)],
    }
    for way, batches in ways.items():
        assert sum(batch.answer_tokens for batch in batches) == count
        found, grads = gradients(model, batches, count)
        assert found == pytest.approx(loss, abs=1e-5), way
        assert grads.keys() == expected.keys()
        for name, grad in grads.items():
            scale = max(1.0, float(expected[name].abs().max()))
            assert (grad - expected[name]).abs().max() < 1e-5 * scale, (way, name)


@pytest.fixture
def config(config):
    """Of the runs of this folder, without answers: they are asked row by row in any case."""
    return replace(config, score_questions=0)


def choices(config):
    with open(f"{config.output_dir}/{config.run_name}/environment.json") as file:
        return {one["choice"]: one for one in json.load(file)[-1]["choices"]}


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({}, 1e-5),
        ({"cache_features": "auto"}, 1e-5),
        ({"activation_checkpointing": True, "memory_savers": ["norm", "glu", "loss"]}, 1e-5),
        # Rounded on each row by itself; what differs in the last bit may round to the next step.
        ({"enable_int8": True}, 2e-3),
    ],
)
def test_a_packed_run_learns_what_a_padded_one_learns(config, flags, error):
    """All 12 records in each step, which is one packed row of two in the first run."""
    config = replace(config, lr_scheduler="constant", learning_rate=2e-4, val_data=config.data)
    config = replace(config, **flags)
    padded = replace(config, batch_size=12, run_name="padded")
    packed = replace(config, batch_size=2, pack_tokens=160, pack_images=8, run_name="packed")
    reports = [finetune(one) for one in (padded, packed)]
    assert [report["train"]["samples"] for report in reports] == [36, 36]
    assert reports[0]["train"]["tokens"] == reports[1]["train"]["tokens"]
    for name in ("first_loss", "last_loss"):
        one, two = (report["train"][name] for report in reports)
        assert two == pytest.approx(one, abs=error), name
    for when in ("before", "after"):
        one, two = (report["evaluation"][when]["val_loss"] for report in reports)
        assert two == pytest.approx(one, abs=error), when
    said = choices(packed)["packing"]
    assert said["value"].startswith("12 records in 2 rows, ") and "--batch_size" in said["reason"]
    # What 12 records hold, of two rows of 160 tokens.
    held = reports[0]["train"]["tokens"] / 3
    assert reports[1]["train"]["fill"] == pytest.approx(held / 320, abs=1e-4)
    assert "fill" not in reports[0]["train"]


def test_a_packed_run_goes_on_exactly(config, stopped_and_whole):
    report, _ = stopped_and_whole(replace(config, batch_size=1, pack_tokens=80))
    assert report["train"]["steps"] == 3


def test_epochs_of_a_packed_run_are_counted_in_its_rows(config, capsys):
    packed = replace(config, pack_tokens=60, epochs=2, max_steps=None, batch_size=None)
    report = finetune(packed)
    rows = int(choices(packed)["packing"]["value"].split(" rows")[0].split(" in ")[1])
    assert 4 <= rows <= 12 and report["train"]["samples"] == 24
    assert report["train"]["steps"] == pytest.approx(2 * rows, abs=2)
    assert "batch size: 1 (rows packed of up to 60 tokens)" in capsys.readouterr().err


def test_records_longer_than_a_row_have_one_each_and_that_is_said(config):
    packed = replace(config, pack_tokens=5)
    finetune(packed)
    value = choices(packed)["packing"]["value"]
    assert value == "12 records in 12 rows, 100.0% full; 12 records are longer and have one each"


def test_a_grouped_run_says_what_it_saves_and_goes_on_exactly(config, stopped_and_whole):
    grouped = replace(config, group_by_length=True)
    report, _ = stopped_and_whole(grouped)
    assert report["train"]["samples"] == 12
    assert choices(replace(grouped, run_name="whole"))["padding"]["value"].endswith(" without")


def test_padding_is_what_is_read_beside_the_records():
    lengths = torch.tensor([3, 5, 2, 2, 4]).numpy()
    # Rows of 5 + 5, 2 + 2 and 4 tokens, of which 2 are padding.
    assert padding_share(lengths, 2) == pytest.approx(2 / 18)
    assert padding_share(lengths, 1) == 0 and padding_share(lengths, 9) == pytest.approx(9 / 25)


def test_a_model_that_cannot_read_packed_rows_is_refused(config, make_flamingo, tiny_bases):
    folder = f"{config.output_dir}/mpt"
    words = load_flamingo(tiny_bases["plain"])[1]
    ids = words.tokenizer.convert_tokens_to_ids(["<image>", "<|endofchunk|>"])
    sizes = {"text": {"vocab_size": len(words.tokenizer)}}
    mpt = make_flamingo("mpt", **sizes, image_token_id=ids[0], eoc_token_id=ids[1])
    mpt.save_pretrained(folder)
    words.save_pretrained(folder)
    config = replace(config, tuning_config=TuningConfig(lora_target_modules=["Wqkv", "to_q"]))
    with pytest.raises(UserError, match="--pack_tokens: a mpt takes no positions.*group_by_length"):
        finetune(replace(config, model=folder, pack_tokens=100))
    assert finetune(replace(config, model=folder, group_by_length=True))["train"]["steps"] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"group_by_length": True, "pack_tokens": 9}, "--group_by_length and --pack_tokens"),
        ({"pack_images": 2}, "--pack_images is given without --pack_tokens"),
        ({"pack_tokens": 0}, "--pack_tokens is 0; expected a whole number of at least 1"),
        ({"pack_tokens": 9, "pack_images": -1}, "--pack_images is -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        FinetuneConfig(**flags).validate()

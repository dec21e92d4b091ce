"""A resumed run goes on with the data and the base that it was started with, or not at all."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuninglab.config import FinetuneConfig
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.models.build import load_flamingo
from tuninglab.recipes.flamingo import finetune
from tuninglab.recipes.resuming import with_its_rows
from tuninglab.run_folder import RunFolder
from tuninglab.training.checkpoint import newest_checkpoint


def go_on(config: FinetuneConfig, **changes):
    place = {"run_name": config.run_name, "output_dir": config.output_dir}
    return finetune(FinetuneConfig(**place, resume=True, **changes))


def test_changed_data_is_noticed_by_content_not_by_place(own, tmp_path):
    finetune(own)
    path = Path(own.data)
    text = path.read_text()
    path.write_text(text.replace('"content": "red"', '"content": "blue"', 1))
    assert path.read_text() != text
    with pytest.raises(UserError, match="--resume: training data changed since .*fingerprints"):
        go_on(own, max_steps=3)
    path.write_text(text)
    picture = path.parent / "0.png"
    kept = picture.read_bytes()
    shutil.copy(path.parent / "1.png", picture)
    with pytest.raises(UserError, match="training data changed"):
        go_on(own, max_steps=3)
    # As a copy of the data has it: other times.
    picture.write_bytes(kept)
    go_on(own, max_steps=3)


def test_a_changed_base_is_noticed(own, tmp_path):
    finetune(own)
    path = tmp_path / "base" / "model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(path).items()}
    whole = path.read_bytes()
    weights[min(weights)].view(-1)[-1] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="--resume: base changed since"):
        go_on(own, max_steps=3)
    path.write_bytes(whole)
    go_on(own, max_steps=3)


@pytest.mark.parametrize("number", [float("nan"), -float("inf")])
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_weight_that_is_not_finite_is_named_and_leaves_no_folder(
    own, tmp_path, number, quantization
):
    path = tmp_path / "base" / "model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(path).items()}
    name = "lang_encoder.model.layers.1.decoder_layer.mlp.up_proj.weight"
    weights[name][3, 5] = number
    save_file(weights, path, metadata={"format": "pt"})
    own = replace(own, run_name="fresh", quantization=quantization)
    # Quantised, the row has a scale that is none.
    said = f"{path}: the weight {name}.* holds numbers that are not finite"
    with pytest.raises(UserError, match=said):
        finetune(own)
    assert not (tmp_path / "fresh").exists()


def test_a_part_with_a_weight_that_is_not_finite_is_named(own, tiny_flamingo, take_apart, tmp_path):
    model = tiny_flamingo()
    model.vision_encoder.post_layernorm.weight.data[2] = float("nan")
    lang, clip = take_apart(model, tmp_path)
    _, processor = load_flamingo(own.model)
    processor.tokenizer.save_pretrained(lang)
    processor.image_processor.save_pretrained(clip)
    parts = {"model": "embedded", "lang_encoder": str(lang), "vision_encoder": str(clip)}
    own = replace(own, cross_attn_every_n_layers=1, **parts)
    with pytest.raises(UserError, match=f"{clip}/model.safetensors: the weight .*layernorm"):
        finetune(replace(own, run_name="fresh"))
    assert not (tmp_path / "fresh").exists()


def test_a_run_of_an_earlier_version_goes_on_and_keeps_its_fingerprints(own, capsys):
    finetune(own)
    path = Path(own.output_dir) / own.run_name / "fingerprints.json"
    first = json.loads(path.read_text())
    path.unlink()
    go_on(own, max_steps=3)
    assert "an earlier version" in capsys.readouterr().err
    assert json.loads(path.read_text()) == first


def test_a_run_of_a_version_that_saw_data_otherwise_compares_its_base(own, capsys):
    finetune(own)
    path = Path(own.output_dir) / own.run_name / "fingerprints.json"
    first = json.loads(path.read_text())
    path.write_text(json.dumps({"training data": "x", "base": first["base"]}))
    go_on(own, max_steps=3)
    assert "of an earlier version" in capsys.readouterr().err
    assert json.loads(path.read_text()) == first
    path.write_text(json.dumps({"training data": "x", "base": "another"}))
    with pytest.raises(UserError, match="--resume: base changed since"):
        go_on(own, max_steps=4)


def test_an_end_before_the_step_reached_is_refused_and_changes_nothing(own):
    finetune(own)
    with pytest.raises(UserError, match="has made 2 steps, .* ends it after 1. Give --max_steps 2"):
        go_on(own, max_steps=1)
    assert go_on(own)["train"]["steps"] == 2


def test_a_seed_at_the_end_of_its_range_has_room_for_the_ranks(own):
    seed = 2**32 - 1
    assert finetune(replace(own, seed=seed, max_steps=1))["train"]["steps"] == 1


def test_mistakes_in_the_settings_of_a_run_name_their_file(own, tmp_path):
    finetune(own)
    Path(own.data).unlink()
    with pytest.raises(UserError, match="does not exist(.|\n)*config.yaml"):
        go_on(own, max_steps=3)


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(own, tmp_path, capsys):
    settings = replace(own, lr_scheduler="constant", save_steps=1)
    finetune(replace(settings, run_name="whole", max_steps=3))
    finetune(settings)
    path = tmp_path / "a" / "checkpoints" / "step-000002" / "state.pt"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    go_on(own, max_steps=3)
    assert "Going on after step 1" in capsys.readouterr().err
    adapters = [
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("a", "whole")
    ]
    assert all(torch.equal(adapters[0][name], weight) for name, weight in adapters[1].items())
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_a_step_keeps_its_rows_on_any_number_of_processes(own):
    finetune(replace(own, batch_size=2, gradient_accumulation_steps=4, max_steps=1))
    run = RunFolder.plan(replace(own, resume=True))
    run.checkpoint = newest_checkpoint(run.checkpoints)
    # As it stands in config.yaml after a start that was killed before it saved.
    config = replace(own, batch_size=2, gradient_accumulation_steps=7)
    for processes, accumulation in ((1, 4), (2, 2), (4, 1)):
        choices = Choices()
        going_on = with_its_rows(config, run, processes, choices)
        assert going_on.gradient_accumulation_steps == accumulation
        assert len(choices.made) == (processes != 1)
    said = r"8 rows, 4 micro-batches of --batch_size 2\. .* 1 or 2 or 4 can \(it had 1\)"
    with pytest.raises(UserError, match=said):
        with_its_rows(config, run, 3, Choices())

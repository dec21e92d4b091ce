"""`--cache_features`: a run that reads features learns what a run that computes them learns."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.worlds import all_well, in_world
from tuninglab.cli import finetune_main
from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.embedded import scoring
from tuninglab.errors import UserError
from tuninglab.models.build import load_flamingo
from tuninglab.recipes.flamingo import finetune

# Of the clock and the machine, not of what was computed.
MEASURED = ("step_s", "tokens_per_s", "peak_memory_mib")


def lines(run: Path) -> list[dict]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: row[name] for name in row if name not in MEASURED} for row in rows]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def choice(run: Path) -> dict[str, str]:
    starts = json.loads((run / "environment.json").read_text())
    (found,) = [c for c in starts[-1]["choices"] if c["choice"] == "features"]
    return found


def forbid_towers(monkeypatch):
    """No picture is encoded any more but the one that a run asks for its shape."""
    from tuninglab.models.flamingo import FlamingoForConditionalGeneration as Model

    def refuse(self, pixel_values):
        assert pixel_values.shape[:2] == (1, 1) and not pixel_values.any()
        return computed(self, pixel_values)

    computed = Model.encode_patches
    monkeypatch.setattr(Model, "encode_patches", refuse)


@pytest.mark.parametrize(
    ("precision", "trained"),
    [
        ("fp32", False),
        ("bf16", True),
        pytest.param("bf16", False, marks=pytest.mark.slow),
        pytest.param("fp32", True, marks=pytest.mark.slow),
    ],
)
def test_losses_and_answers_are_those_without(config, tmp_path, monkeypatch, precision, trained):
    tuning = TuningConfig(train_answer_tokens="false", train_perceiver=trained)
    config = replace(config, precision=precision, tuning_config=tuning, val_split=0.25)
    config = replace(config, eval_steps=2, max_steps=5, workers=int(trained))
    plain = finetune(replace(config, run_name="plain"))
    cached = replace(config, cache_features="auto")
    reports = [finetune(replace(cached, run_name="first"))]
    # The second run finds all there.
    forbid_towers(monkeypatch)
    reports.append(finetune(replace(cached, run_name="second")))
    for name, report in zip(("first", "second"), reports, strict=True):
        assert lines(tmp_path / name) == lines(tmp_path / "plain")
        assert report["evaluation"] == plain["evaluation"]
        weights, expected = adapter(tmp_path / name), adapter(tmp_path / "plain")
        assert all(torch.equal(weights[key], value) for key, value in expected.items())
    # 11 pictures, and grey ones for the controls, which are all the same picture.
    said = [choice(tmp_path / name)["value"] for name in ("first", "second")]
    assert said == ["cached, 12 new of 12 pictures", "cached, 0 new of 12 pictures"]
    assert ("patch_features" if trained else "image_features") in choice(tmp_path / "first")[
        "reason"
    ]


def test_a_resumed_run_reads_the_same_cache(config, tmp_path, stopped_and_whole, monkeypatch):
    """In a folder named relative to where the run was started."""
    monkeypatch.chdir(tmp_path)
    config = replace(config, cache_features="kept", val_split=0.25)
    stopped_and_whole(config)
    monkeypatch.chdir("/")
    go_on = {"run_name": "a", "output_dir": config.output_dir, "resume": True, "max_steps": 4}
    finetune(FinetuneConfig(**go_on))
    assert choice(tmp_path / "a")["value"] == "cached, 0 new of 12 pictures"
    assert str(tmp_path / "kept") in choice(tmp_path / "a")["reason"]


def test_a_new_bridge_resumes_with_the_tower_saved_in_the_run(config, take_apart, tmp_path):
    model, processor = load_flamingo(config.model)
    lang, clip = take_apart(model, tmp_path)
    processor.tokenizer.save_pretrained(lang)
    processor.image_processor.save_pretrained(clip)
    parts = {"lang_encoder": str(lang), "vision_encoder": str(clip)}
    config = replace(config, model="embedded", cross_attn_every_n_layers=1, **parts)
    finetune(replace(config, max_steps=1, cache_features="auto"))
    # The base was saved whole before its tower went.
    assert (
        load_flamingo(tmp_path / "a" / "base")[0].encode_patches(torch.ones(1, 1, 3, 16, 16)).any()
    )
    go_on = {"run_name": "a", "output_dir": config.output_dir, "resume": True, "max_steps": 2}
    finetune(FinetuneConfig(**go_on))
    assert choice(tmp_path / "a")["value"] == "cached, 0 new of 11 pictures"


def test_pictures_that_changed_are_computed_anew(config, tiny_data, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for file in tiny_data.parent.glob("*.png"):
        (data / file.name).write_bytes(file.read_bytes())
    (data / tiny_data.name).write_text(tiny_data.read_text())
    config = replace(config, data=str(data / tiny_data.name), max_steps=2)
    finetune(replace(config, run_name="old", cache_features="auto"))
    Image.new("RGB", (16, 16), (250, 250, 0)).save(data / "3.png")
    finetune(replace(config, run_name="new", cache_features="auto"))
    finetune(replace(config, run_name="plain"))
    assert choice(tmp_path / "new")["value"] == "cached, 1 new of 11 pictures"
    assert lines(tmp_path / "new") == lines(tmp_path / "plain") != lines(tmp_path / "old")


@pytest.mark.slow
def test_pictures_in_memory_are_known_by_what_they_show(tmp_path, monkeypatch):
    """The embedded data draws each picture anew, whenever it is asked for."""
    monkeypatch.setattr(scoring, "TEST_QUESTIONS", 24)
    monkeypatch.setattr(scoring, "VAL_QUESTIONS", 24)
    given = {"output_dir": str(tmp_path), "embedded_pictures": 24, "max_steps": 2, "batch_size": 8}
    given |= {"score_questions": 0, "precision": "fp32"}
    finetune(FinetuneConfig(run_name="plain", **given))
    for name in ("first", "second"):
        finetune(FinetuneConfig(run_name=name, cache_features=str(tmp_path / "kept"), **given))
        assert lines(tmp_path / name) == lines(tmp_path / "plain")
    assert choice(tmp_path / "second")["value"].startswith("cached, 0 new of 73 ")
    evaluations = [
        json.loads((tmp_path / name / "report.json").read_text())["evaluation"]
        for name in ("plain", "first", "second")
    ]
    assert evaluations[0] == evaluations[1] == evaluations[2]


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"train": ["vision"]}, "the tower trains"),
        ({"modules_to_save": ["vision_encoder"]}, "the tower trains"),
    ],
)
def test_a_tower_that_trains_is_refused(config, tmp_path, tuning, message):
    tuning = TuningConfig(train_answer_tokens="false", **tuning)
    with pytest.raises(UserError, match=message) as refused:
        finetune(replace(config, cache_features="auto", tuning_config=tuning))
    assert refused.value.exit_code == 2
    assert not (tmp_path / "a").exists() and not (tmp_path / "features").exists()


def test_a_cache_of_another_model_or_precision_is_refused_by_name(config, tiny_bases, tmp_path):
    config = replace(config, cache_features=str(tmp_path / "kept"), max_steps=1)
    finetune(config)
    before = {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()}
    trains = TuningConfig(train_answer_tokens="false", train_perceiver=True)
    tower, processor = load_flamingo(config.model)
    with torch.no_grad():
        next(tower.vision_encoder.parameters())[0] += 1
    for name in ("tower", "pictures"):
        tower.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        tower = load_flamingo(config.model)[0]
        processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    for change, named in (
        ({"precision": "bf16"}, r"dtype, .*\(dtype float32 there, bfloat16 here\)"),
        ({"tuning_config": trains}, "level, shape"),
        ({"model": str(tmp_path / "tower")}, "otherwise: vision_encoder differ"),
        ({"model": str(tmp_path / "pictures")}, "otherwise: image_processor differ"),
    ):
        with pytest.raises(UserError, match=named) as refused:
            finetune(replace(config, run_name="b", **change))
        assert refused.value.exit_code == 2
    # One from before its rows had checksums.
    said = tmp_path / "kept" / "cache.json"
    identity = json.loads(said.read_text())
    said.write_text(json.dumps({k: v for k, v in identity.items() if k != "form"}))
    with pytest.raises(UserError, match="form differ .form null there, 2 here.. Name another"):
        finetune(replace(config, run_name="b"))
    said.write_bytes(before["cache.json"])
    assert not (tmp_path / "b").exists()
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()}


@pytest.mark.slow
def test_two_processes_fill_one_cache(config, tmp_path):
    """Twelve pictures, six for each; then one process finds them all."""
    flags = {"run_name": "two", "model": config.model, "data": config.data, "max_steps": 2}
    flags |= {"output_dir": str(tmp_path), "precision": "fp32", "val_split": 0.25}
    flags |= {"batch_size": 2, "learning_rate": 2e-4, "cache_features": str(tmp_path / "kept")}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    all_well(in_world(2, lambda: sys.exit(finetune_main(words)), tmp_path))
    assert choice(tmp_path / "two")["value"] == "cached, 12 new of 12 pictures"
    assert (tmp_path / "kept" / "index.bin").stat().st_size == 12 * 36
    tuning = TuningConfig()
    one = replace(config, **{**flags, "run_name": "one", "batch_size": 4}, tuning_config=tuning)
    finetune(one)
    assert choice(tmp_path / "one")["value"] == "cached, 0 new of 12 pictures"
    plain = finetune(replace(one, run_name="plain", cache_features=None))
    found = json.loads((tmp_path / "two" / "report.json").read_text())
    for when in ("before", "after"):
        both = (r["evaluation"][when]["val_loss"] for r in (found, plain))
        assert next(both) == pytest.approx(next(both), rel=1e-5)
    assert lines(tmp_path / "one") == lines(tmp_path / "plain")

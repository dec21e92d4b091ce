"""Whole runs with other forms of LoRA and other parts: they train, go on, and answer the same."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from tuninglab.adapters.lora import quietly
from tuninglab.config.tuning import TuningConfig
from tuninglab.data.reading.splits import read_splits
from tuninglab.errors import UserError
from tuninglab.evaluation.answers import generate_answers
from tuninglab.models.build import load_flamingo
from tuninglab.recipes.flamingo import finetune
from tuninglab.serving.open_model import open_model

# With the whole runs beside it this takes more than a minute.
pytestmark = pytest.mark.slow

TOWER = TuningConfig(train=["vision"], part_learning_rates={"vision": 1e-3, "gates": 1e-2})
PISSA = TuningConfig(init_lora_weights="pissa_niter_2", r=4)
EMBEDDINGS = TuningConfig(modules_to_save=["embed_tokens"], freeze=["gates"])


@pytest.mark.parametrize("tuning", [TOWER, PISSA, EMBEDDINGS], ids=["tower", "pissa", "table"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_goes_on_as_if_it_had_not_stopped(
    stopped_and_whole, config, tmp_path, tuning, precision
):
    stopped_and_whole(
        replace(config, tuning_config=tuning, precision=precision, lr_scheduler="constant")
    )


def test_a_tuned_tower_answers_in_chat_as_with_peft_alone(config, tmp_path, capsys):
    finetune(replace(config, tuning_config=TOWER))
    said = capsys.readouterr().err
    assert "vision_encoder" in said
    assert "Learning rates: plain 0.003, decayed 0.003, gates 0.01, vision 0.001\n" in said
    base, processor = load_flamingo(config.model)
    alone = quietly(PeftModel.from_pretrained, base, str(tmp_path / "a" / "adapter")).eval()
    opened, _ = open_model(str(tmp_path / "a"))
    samples = read_splits(config.data).train
    pixels = processor(text=["<image>"], images=[[str(samples[0].images[0])]])["pixel_values"]
    features = [m.get_base_model().encode_patches(pixels) for m in (alone, opened.cpu().float())]
    assert torch.equal(*features)
    assert not torch.equal(load_flamingo(config.model)[0].encode_patches(pixels), features[0])
    answers = [generate_answers(m, processor, samples, max_new_tokens=3) for m in (alone, opened)]
    assert answers[0] == answers[1]


def test_a_rate_for_what_does_not_train_leaves_no_folder(config, tmp_path):
    wrong = TuningConfig(part_learning_rates={"vision": 1e-5})
    with pytest.raises(UserError, match="vision, in which nothing trains"):
        finetune(replace(config, tuning_config=wrong))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("words", [["lm"], ["head"], ["cross_attention", "embeddings"]], ids=str)
def test_parts_train_in_full_on_an_int8_base(config, tmp_path, words):
    tuning = TuningConfig(train=words)
    report = finetune(replace(config, enable_int8=True, tuning_config=tuning, max_steps=2))
    assert report["train"]["last_loss"] < report["train"]["first_loss"]
    rows = json.loads((tmp_path / "a" / "trainable.json").read_text())
    assert {row["dtype"] for row in rows} == {"float32"}

"""What is decided where a setting was left open, and rows of words that the base does not know."""

import json
import math
from dataclasses import replace

import pytest
import torch
import yaml
from peft import PeftModel

from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.models.build import load_flamingo
from tuninglab.recipes.defaults import MOST_EPOCHS, RECORDS_SEEN, decide
from tuninglab.recipes.flamingo import finetune
from tuninglab.serving.open_model import open_model

# With the whole runs beside it this takes more than a minute.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("parameters", "rate", "batch"), [(5e6, 3e-3, 16), (5e8, 1e-3, 8), (9e9, 2e-4, 8)]
)
def test_larger_bases_take_smaller_steps(parameters, rate, batch):
    choices = Choices()
    config = decide(FinetuneConfig(data="my.json"), int(parameters), 2000, choices)
    assert (config.learning_rate, config.batch_size) == (rate, batch)
    said = {entry["choice"]: entry for entry in choices.made}
    assert said["learning rate"]["value"] == f"{rate:g}"
    assert f"{parameters / 1e6:,.1f} M" in said["learning rate"]["reason"]


@pytest.mark.parametrize("records", [1, 100, 2000, 16_000, 10**6])
def test_passes_show_about_as_many_records_whatever_the_data(records):
    epochs = decide(FinetuneConfig(data="my.json"), 5_000_000, records, Choices()).epochs
    assert 1 <= epochs <= MOST_EPOCHS[0]
    if 1 < epochs < MOST_EPOCHS[0]:
        assert RECORDS_SEEN[0] <= epochs * records < RECORDS_SEEN[0] + records
    # The embedded data is seen once.
    assert decide(FinetuneConfig(), 5_000_000, records, Choices()).epochs == 1


def test_what_was_given_stays():
    given = {"learning_rate": 1e-5, "batch_size": 1, "epochs": 9, "score_questions": 0}
    config, choices = FinetuneConfig(data="my.json", **given), Choices()
    assert decide(config, 5_000_000, 10, choices) == config and not choices.made


def choices_of(run) -> dict[str, dict]:
    (start,) = json.loads((run / "environment.json").read_text())
    return {entry["choice"]: entry for entry in start["choices"]}


ROWS = "rows of the answers' tokens"


@pytest.fixture
def loud(config, tmp_path):
    """Settings with a base that is a few nats worse than guessing: its output layer shouts."""
    base, processor = load_flamingo(config.model)
    base.lang_encoder.get_output_embeddings().weight.data *= 300
    base.save_pretrained(tmp_path / "loud")
    processor.save_pretrained(tmp_path / "loud")
    return replace(config, model=str(tmp_path / "loud"), tuning_config=TuningConfig())


@pytest.mark.parametrize("decided", ["true", "false"])
def test_a_resumed_run_trains_the_rows_that_it_was_started_with(loud, tmp_path, decided):
    """Not what `auto` would come to now; runs of before the setting trained none."""
    wish = "auto" if decided == "true" else "false"
    finetune(replace(loud, max_steps=1, tuning_config=TuningConfig(train_answer_tokens=wish)))
    path = tmp_path / "a" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    assert settings["tuning_config"].pop("train_answer_tokens") == decided
    if decided == "false":
        path.write_text(yaml.safe_dump(settings))
    go_on = FinetuneConfig(run_name="a", output_dir=loud.output_dir, resume=True, max_steps=2)
    assert finetune(go_on)["train"]["steps"] == 2
    settings = json.loads((tmp_path / "a" / "adapter" / "adapter_config.json").read_text())
    assert bool(settings["trainable_token_indices"]) == (decided == "true")


def test_rows_of_unknown_words_train_and_load_with_peft_alone(loud, tmp_path, capsys):
    finetune(replace(loud, val_split=0.25))
    assert "worse than guessing" in capsys.readouterr().err
    assert choices_of(tmp_path / "a")[ROWS]["reason"] == "worse than guessing"
    settings = json.loads((tmp_path / "a" / "adapter" / "adapter_config.json").read_text())
    rows = settings["trainable_token_indices"]
    assert len(rows) == 2 and len({tuple(ids) for ids in rows.values()}) == 1
    ids = next(iter(rows.values()))
    tuned, _ = open_model(tmp_path / "a")
    base, _ = load_flamingo(tmp_path / "loud")
    before = base.lang_encoder.get_output_embeddings().weight.detach().clone()
    alone = PeftModel.from_pretrained(base, str(tmp_path / "a" / "adapter")).eval()
    tokens = torch.tensor([[1, *ids[:4]]])
    with torch.no_grad():
        expected = tuned(input_ids=tokens).logits
        torch.testing.assert_close(alone(input_ids=tokens).logits, expected)
    # Only these rows moved.
    head = alone.get_base_model().lang_encoder.get_output_embeddings()
    after = head.token_adapter.get_merged_weights(["default"])
    moved = (after - before).abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == ids


def test_a_base_that_knows_the_words_keeps_its_rows(config, tmp_path):
    base, processor = load_flamingo(config.model)
    # A flat output layer is exactly as good as guessing: not worse.
    base.lang_encoder.get_output_embeddings().weight.data.zero_()
    base.save_pretrained(tmp_path / "flat")
    processor.save_pretrained(tmp_path / "flat")
    flat = replace(config, model=str(tmp_path / "flat"), tuning_config=TuningConfig(), max_steps=1)
    report = finetune(replace(flat, val_split=0.25))
    assert ROWS not in choices_of(tmp_path / "a")
    rows = len(processor.tokenizer)
    chance = report["evaluation"]["chance"]["val_loss"]
    assert chance == pytest.approx(math.log(rows))
    assert report["evaluation"]["before"]["val_loss"] == pytest.approx(chance, rel=1e-5)


def test_the_embedded_base_trains_rows_on_own_data_and_not_on_its_own(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr("tuninglab.embedded.scoring.TEST_QUESTIONS", 8)
    own = replace(config, model="embedded", tuning_config=TuningConfig(), max_steps=1)
    finetune(own)
    assert choices_of(tmp_path / "a")[ROWS]["value"].endswith("trained")
    finetune(replace(own, data=None, run_name="b", embedded_pictures=8, batch_size=4))
    assert ROWS not in choices_of(tmp_path / "b")


def test_an_int8_head_cannot_train_rows(config, tmp_path):
    wanted = replace(config, tuning_config=TuningConfig(train_answer_tokens="true"), max_steps=1)
    finetune(replace(wanted, enable_int8=True))
    assert choices_of(tmp_path / "a")[ROWS]["reason"] == "--tuning_config.train_answer_tokens"


def test_rows_that_train_in_full_are_left_to_that(config, tmp_path):
    tuning = TuningConfig(train_answer_tokens="auto", modules_to_save=["lm_head"])
    finetune(replace(config, model="embedded", tuning_config=tuning, max_steps=1))
    assert "whole table" in choices_of(tmp_path / "a")[ROWS]["reason"]
    tuning = replace(tuning, train_answer_tokens="true")
    with pytest.raises(UserError, match="train_answer_tokens: the whole table trains"):
        finetune(replace(config, tuning_config=tuning, run_name="b"))

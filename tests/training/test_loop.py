import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tuninglab.adapters.lora import tune
from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.data.sampler import StepSampler
from tuninglab.errors import UserError, WorkError
from tuninglab.recipes.common import Setup, open_run, prepare, train_setup
from tuninglab.recipes.flamingo import FLAMINGO, open_data
from tuninglab.training import loop as train_module
from tuninglab.training import step as step_module
from tuninglab.training.checkpoint import trainable_weights
from tuninglab.training.loop import set_training_mode


@pytest.fixture
def config(tiny_bases, tiny_data, tmp_path) -> FinetuneConfig:
    return FinetuneConfig(
        model=str(tiny_bases["plain"]),
        data=str(tiny_data),
        output_dir=str(tmp_path),
        run_name="a",
        precision="fp32",
        max_steps=6,
        batch_size=4,
        learning_rate=3e-3,
    )


def opened(config: FinetuneConfig) -> Setup:
    """All that the recipe does before training."""
    config, run = open_run(config)
    return prepare(FLAMINGO, config, run, open_data(config))


def trained(config: FinetuneConfig):
    """Train as the recipe does, without its report: the model, and the lines of metrics.jsonl."""
    setup = opened(config)
    train_setup(setup)
    return setup.model, metrics(setup.run.path)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(lines: list[dict]) -> list[float]:
    return [line["loss"] for line in lines if "loss" in line]


def test_loss_falls_and_metrics_are_complete(config):
    _, lines = trained(replace(config, max_steps=12, eval_steps=6, val_split=0.25))
    steps = [line for line in lines if "loss" in line]
    assert losses(lines)[-1] < losses(lines)[0] - 0.1
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert set(steps[0]) == {
        *("step", "epoch", "loss", "learning_rate", "grad_norm", "samples", "tokens"),
        *("step_s", "tokens_per_s", "peak_memory_mib"),
    }
    validations = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in validations] == [6, 12]
    assert not any("loss" in line for line in validations)
    # 9 training samples: steps of 4, 4 and 1.
    assert [line["samples"] for line in steps[:4]] == [4, 8, 9, 13]
    assert steps[2]["epoch"] == 1.0


def test_learning_rate_of_a_line_is_the_one_of_its_step(config):
    config = replace(config, warmup_steps=2, lr_scheduler="linear", max_steps=4, learning_rate=1.0)
    _, lines = trained(config)
    assert [line["learning_rate"] for line in lines] == pytest.approx([0, 0.5, 1.0, 0.5])


def test_steps_equal_a_loop_written_by_hand(config):
    """AdamW on the mean over all answer tokens of the batch, clipped, at a constant rate."""
    settings = {"max_steps": 3, "lr_scheduler": "constant", "warmup_steps": 0}
    # Savers round otherwise, and where a gradient is all but 0 AdamW makes a whole step of that.
    settings["memory_savers"] = []
    config = replace(config, **settings, tuning_config=TuningConfig(gate_lr_multiplier=1.0))
    model, lines = trained(config)
    setup = opened(replace(config, run_name="b"))
    reference = setup.model
    set_training_mode(reference)
    parameters = [p for p in reference.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
    expected = []
    for batch in list(setup.train_loader)[:3]:
        labels = batch.inputs.pop("labels")
        logits = reference(**batch.inputs).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        expected.append(loss.item())
    assert losses(lines) == pytest.approx(expected, rel=1e-5)
    for name, weight in trainable_weights(reference).items():
        torch.testing.assert_close(trainable_weights(model)[name], weight, rtol=1e-3, atol=1e-5)


def test_accumulated_micro_batches_equal_one_batch(config):
    # 12 samples in steps of 8: the last step of an epoch has a single micro-batch.
    whole, whole_lines = trained(replace(config, batch_size=8))
    parts = replace(config, batch_size=2, gradient_accumulation_steps=4, run_name="b")
    in_parts, part_lines = trained(parts)
    assert losses(part_lines) == pytest.approx(losses(whole_lines), rel=1e-5)
    for name, weight in trainable_weights(whole).items():
        torch.testing.assert_close(trainable_weights(in_parts)[name], weight, rtol=1e-3, atol=1e-5)
    counts = [(line["samples"], line["tokens"]) for line in whole_lines]
    assert [(line["samples"], line["tokens"]) for line in part_lines] == counts


def test_workers_change_nothing(config):
    _, plain = trained(replace(config, max_steps=2))
    _, fetched = trained(replace(config, max_steps=2, workers=1, run_name="b"))
    assert losses(plain) == losses(fetched)


def test_logging_steps_average(config):
    _, lines = trained(config)
    _, sparse = trained(replace(config, logging_steps=4, run_name="b"))
    expected = [sum(losses(lines)[:4]) / 4, sum(losses(lines)[4:]) / 2]
    assert losses(sparse) == pytest.approx(expected)
    assert [line["step"] for line in sparse] == [4, 6]


def test_stopped_and_resumed_equals_uninterrupted_to_the_last_bit(config, monkeypatch, capsys):
    dropout = TuningConfig(lora_dropout=0.2)
    config = replace(config, max_steps=7, eval_steps=2, val_split=0.2, tuning_config=dropout)
    config = replace(config, batch_size=2, gradient_accumulation_steps=2, logging_steps=2)
    model, lines = trained(config)

    stopped = replace(config, run_name="b")
    original = train_module.count_step

    def interrupt(batches, accelerator, calls=[]):  # noqa: B006
        calls.append(0)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(batches, accelerator)

    monkeypatch.setattr(train_module, "count_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained(stopped)
    monkeypatch.undo()
    folder = Path(config.output_dir) / "b"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000004"]
    assert "--resume --run_name b --output_dir" in capsys.readouterr().err
    # What was written after the checkpoint is written again.
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss": 1.0}) + "\n")

    torch.rand(5)  # the generators stand elsewhere
    resumed, resumed_lines = trained(replace(stopped, resume=True))
    pick = ("step", "epoch", "loss", "val_loss", "learning_rate", "grad_norm", "samples", "tokens")
    assert [{k: line[k] for k in pick if k in line} for line in resumed_lines] == [
        {k: line[k] for k in pick if k in line} for line in lines
    ]
    for name, weight in trainable_weights(model).items():
        assert torch.equal(trainable_weights(resumed)[name], weight), name


def test_second_interrupt_stops_at_once():
    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell runs this in the background
    with train_module.stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loss_that_is_not_finite_stops_before_the_step(config):
    config = replace(config, learning_rate=1e30, save_steps=1, warmup_steps=0)
    with pytest.raises(WorkError, match=r"Step \d: .*not finite.*colours.jsonl") as caught:
        trained(config)
    assert "record" in str(caught.value) or "line" in str(caught.value)
    step = len(losses(metrics(Path(config.output_dir) / "a")))
    assert f"Step {step + 1}:" in str(caught.value)
    saved = sorted(p.name for p in (Path(config.output_dir) / "a" / "checkpoints").iterdir())
    assert saved == [f"step-{number:06d}" for number in range(1, step + 1)]


def test_a_gradient_that_is_not_finite_stops_too(config, monkeypatch):
    original = step_module.batch_loss

    def steep(*args):
        loss = original(*args)
        # Finite forward, infinite backward.
        return loss + (loss * 0).sqrt()

    monkeypatch.setattr(step_module, "batch_loss", steep)
    with pytest.raises(WorkError, match="Step 1: loss 5.*gradient norm nan.*not finite"):
        trained(config)


class Rank:
    """An accelerator as a process of another rank has it."""

    def __init__(self, accelerator, rank: int):
        self.accelerator, self.process_index = accelerator, rank

    def __getattr__(self, name):
        return getattr(self.accelerator, name)


def test_ranks_start_from_the_same_weights_but_not_with_the_same_dropout(config):
    tuning = TuningConfig(lora_dropout=0.5)
    losses, weights = [], []
    for number, rank in enumerate((0, 0, 1)):
        setup = opened(replace(config, run_name=f"r{number}", tuning_config=tuning))
        weights.append(trainable_weights(setup.model))
        for name, parameter in setup.model.named_parameters():
            if "lora_B" in name:
                # At its start of 0 nothing that is dropped would show.
                parameter.data.fill_(0.1)
        accelerator: Any = Rank(setup.accelerator, rank)
        batches = setup.train_loader.batch_sampler
        state = train_module.start(setup.model, batches, setup.config, accelerator)
        (batch, *_) = setup.train_loader
        losses.append(step_module.batch_loss(state.model, batch, 1, accelerator).item())
    for other in weights[1:]:
        assert all(torch.equal(tensor, weights[0][name]) for name, tensor in other.items())
    # The same rank drops the same, another one does not.
    assert losses[0] == losses[1] != losses[2]


def test_bf16_trains_float32_weights_on_a_bf16_base(config):
    model, lines = trained(replace(config, precision="bf16", max_steps=3))
    _, reference = trained(replace(config, max_steps=3, run_name="b"))
    assert losses(lines) == pytest.approx(losses(reference), rel=0.02)
    dtypes = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


def test_fp16_on_a_cpu_is_refused(config):
    with pytest.raises(UserError, match="--precision fp16"):
        trained(replace(config, precision="fp16"))


def test_activation_checkpointing_gives_the_same_losses(config):
    _, plain = trained(replace(config, max_steps=3))
    _, checkpointed = trained(
        replace(config, max_steps=3, activation_checkpointing=True, run_name="b")
    )
    assert losses(checkpointed) == pytest.approx(losses(plain), rel=1e-5)


def test_frozen_towers_stay_in_eval_mode(tiny_flamingo):
    model = tune(tiny_flamingo(), TuningConfig())
    set_training_mode(model)
    base = model.get_base_model()
    assert not base.vision_encoder.training and not base.perceiver.training
    assert base.lang_encoder.training
    model = tune(tiny_flamingo(), TuningConfig(train_perceiver=True))
    set_training_mode(model)
    assert model.get_base_model().perceiver.training


def test_epochs_count_steps(config):
    _, lines = trained(replace(config, max_steps=None, epochs=2, batch_size=5))
    assert len(lines) == 2 * StepSampler(12, 5).steps_per_epoch
    assert lines[-1]["epoch"] == 2.0 and lines[-1]["samples"] == 24

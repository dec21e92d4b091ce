"""The fp16 rules, with accelerate's own scaler on a CPU: fp16 itself needs a GPU."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tuninglab.data.batches import Batch
from tuninglab.errors import WorkError
from tuninglab.training.optimizer import make_schedule
from tuninglab.training.state import Counts, Progress, TrainState
from tuninglab.training.step import SMALLEST_SCALE, optimizer_step

RATE = 0.5


class Scaling(Accelerator):
    """accelerate as it is with fp16 on a GPU, but that the model computes in fp32."""

    mixed_precision = "fp16"  # only read by what unscales the gradients

    def __init__(self, scale: float):
        super().__init__(cpu=True)
        self.native_amp = True
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)


class Weight(nn.Module):
    """One weight whose loss is its product with the batch's factor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, factor, broken=None, **_):
        loss = (self.weight * factor).sum()
        if broken is not None:
            # Finite forward, no number backward.
            loss = loss + (self.weight * 0).sqrt().sum()
        return SimpleNamespace(loss=loss)


def started(scale: float) -> tuple[TrainState, Accelerator]:
    accelerator = Scaling(scale)
    model = Weight()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    schedule = make_schedule(optimizer, "linear", 4, warmup_steps=0)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    state = TrainState(model, wrapped, prepared, schedule, sampler=None, progress=Progress())
    return state, accelerator


def step(state, accelerator, **inputs):
    batch = Batch({name: torch.tensor(value) for name, value in inputs.items()}, ["one"], 1, 1, 1)
    return optimizer_step(state, [batch], Counts(1, 1, 1), 0.0, accelerator)


def test_the_rate_waits_for_a_step_that_the_scaler_skipped():
    state, accelerator = started(scale=2.0**16)
    # 2^16 times this is more than float32 holds; the loss alone is not.
    skipped = step(state, accelerator, factor=1e36)
    assert accelerator.optimizer_step_was_skipped
    assert state.model.weight.item() == 1 and not torch.isfinite(torch.tensor(skipped.grad_norm))
    assert (state.schedule.last_epoch, accelerator.scaler.get_scale()) == (0, 2.0**15)
    # Without overflow it is a step as any: the plain rule on the plain gradient.
    made = step(state, accelerator, factor=0.25)
    assert state.model.weight.item() == pytest.approx(1 - RATE * 0.25)
    assert (skipped.learning_rate, made.learning_rate) == (RATE, RATE)
    assert (made.grad_norm, state.schedule.last_epoch) == (pytest.approx(0.25), 1)
    assert step(state, accelerator, factor=0.25).learning_rate == pytest.approx(RATE * 3 / 4)


def test_an_overflow_at_the_smallest_scale_is_no_matter_of_the_scale():
    state, accelerator = started(scale=4 * SMALLEST_SCALE)
    for _ in range(2):
        step(state, accelerator, factor=1.0, broken=1.0)
    assert accelerator.scaler.get_scale() == SMALLEST_SCALE
    with pytest.raises(WorkError, match="Step 1: loss 1.0, gradient norm nan: not finite.*one"):
        step(state, accelerator, factor=1.0, broken=1.0)
    assert (state.model.weight.item(), state.schedule.last_epoch) == (1, 0)

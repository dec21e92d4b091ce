import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tuninglab.console import Choices
from tuninglab.data.orders import MixedOrder
from tuninglab.data.sampler import StepSampler
from tuninglab.errors import UserError, WorkError
from tuninglab.training import checkpoint
from tuninglab.training.checkpoint import (
    TrainState,
    generator_state,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    set_generator_state,
)
from tuninglab.training.hardware import make_accelerator
from tuninglab.training.optimizer import make_optimizer, make_schedule
from tuninglab.training.state import Progress

CPU = torch.device("cpu")


@pytest.fixture
def accelerator():
    return make_accelerator("fp32", Choices())


def make_state(width: int = 3, steps: int = 0) -> TrainState:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(width, 1))
    model[0].bias.requires_grad = False
    optimizer = make_optimizer(model, 0.1, 0.0)
    schedule = make_schedule(optimizer, "linear", 10, 0)
    sampler = StepSampler(6, 2)
    state = TrainState(model, model, optimizer, schedule, sampler, Progress())
    for _ in range(steps):
        advance(state)
    return state


def advance(state: TrainState) -> None:
    state.model(torch.rand(4, 2)).sum().backward()
    state.optimizer.step()
    state.schedule.step()
    state.optimizer.zero_grad()
    state.sampler.advance()
    state.progress.step += 1


def test_everything_comes_back(tmp_path, accelerator):
    state = make_state(steps=4)
    save_checkpoint(tmp_path, state, accelerator, 2)
    draws = (random.random(), np.random.rand(), torch.rand(1))
    advance(state)
    other = make_state(steps=1)
    load_checkpoint(tmp_path / "step-000004", other, accelerator)
    assert draws == (random.random(), np.random.rand(), torch.rand(1))
    advance(other)
    for name, weight in state.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], weight)
    assert other.schedule.get_last_lr() == state.schedule.get_last_lr()
    assert other.sampler.state_dict() == state.sampler.state_dict()
    assert other.progress == state.progress


def test_an_epoch_may_have_more_steps_than_the_data_has_rows_for(tmp_path, accelerator):
    # Of 6 rows each is taken twice: 6 steps of 2.
    sampler = StepSampler(6, 2, order=MixedOrder((6,), (12,)))
    state = make_state()
    state.sampler = sampler
    for _ in range(4):
        advance(state)
    path = save_checkpoint(tmp_path, state, accelerator, 2)
    other = make_state()
    other.sampler = StepSampler(6, 1, 2, order=MixedOrder((6,), (12,)))
    load_checkpoint(path, other, accelerator)
    assert (other.sampler.epoch, other.sampler.step) == (0, 4)
    saved = torch.load(path / "state.pt", weights_only=True)
    saved["sampler"]["step"] = 6
    torch.save(saved, path / "state.pt")
    with pytest.raises(UserError, match="step 6 of epoch 0 is beyond the data"):
        load_checkpoint(path, other, accelerator)


def test_only_trained_weights_are_kept(tmp_path, accelerator):
    path = save_checkpoint(tmp_path, make_state(), accelerator, 2)
    names = {"0.weight", "1.weight", "1.bias"}
    assert set(load_file(path / "trainable.safetensors")) == names


def test_state_holds_no_code(tmp_path, accelerator):
    path = save_checkpoint(tmp_path, make_state(steps=2), accelerator, 2)
    saved = torch.load(path / "state.pt", weights_only=True)
    assert set(saved) == {
        *("optimizer", "schedule", "sampler", "progress", "generators", "scaler"),
    }


def test_full_disk_leaves_earlier_checkpoints_whole(tmp_path, accelerator, monkeypatch):
    state = make_state(steps=1)
    save_checkpoint(tmp_path, state, accelerator, 2)
    advance(state)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(WorkError, match="step-000002 could not be written.*whole"):
        save_checkpoint(tmp_path, state, accelerator, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    load_checkpoint(newest_checkpoint(tmp_path), make_state(), accelerator)


def test_newest_is_by_number_and_whole(tmp_path, accelerator):
    for step in (999_999, 1_000_000):
        state = make_state()
        state.progress.step = step
        save_checkpoint(tmp_path, state, accelerator, 2)
    (tmp_path / "step-2000000").mkdir()  # emptied by hand
    (tmp_path / ".step-3000000.writing").mkdir()  # killed while writing
    assert newest_checkpoint(tmp_path).name == "step-1000000"


def steps(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_checkpoints_stay_by_step(tmp_path, accelerator, keep):
    numbers = (9, 10, 999_999, 1_000_000)
    for step in numbers:
        state = make_state()
        state.progress.step = step
        save_checkpoint(tmp_path, state, accelerator, keep)
    assert steps(tmp_path) == sorted(f"step-{step:06d}" for step in numbers[-keep:])


def test_pruning_counts_whole_checkpoints_and_leaves_strangers(tmp_path, accelerator):
    state = make_state(steps=1)
    save_checkpoint(tmp_path, state, accelerator, 1)
    (tmp_path / "step-000009").mkdir()  # emptied by hand
    (tmp_path / "step-mine").mkdir()
    advance(state)
    save_checkpoint(tmp_path, state, accelerator, 1)
    assert steps(tmp_path) == ["step-000002", "step-000009", "step-mine"]


@pytest.mark.parametrize("point", ["saving", "aside", "deleting"])
def test_a_kill_while_pruning_leaves_a_run_that_goes_on(tmp_path, accelerator, monkeypatch, point):
    state = make_state(steps=1)
    save_checkpoint(tmp_path, state, accelerator, 1)
    advance(state)

    class Killed(BaseException):
        pass

    def kill(folder):
        if point == "aside":
            folder.rename(folder.with_name(f".{folder.name}.old"))
        if point == "deleting":
            aside = folder.with_name(f".{folder.name}.old")
            folder.rename(aside)
            (aside / "state.pt").unlink()
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(checkpoint, "remove_folder", kill)
        save_checkpoint(tmp_path, state, accelerator, 1)
    newest = newest_checkpoint(tmp_path)
    assert newest.name == "step-000002"
    load_checkpoint(newest, make_state(), accelerator)
    # The folder that a kill left half deleted never counts as a checkpoint again.
    shown = [name for name in steps(tmp_path) if not name.startswith(".")]
    assert shown == (["step-000001", "step-000002"] if point == "saving" else ["step-000002"])
    advance(state)
    save_checkpoint(tmp_path, state, accelerator, 1)
    assert steps(tmp_path) == ["step-000003"]


def test_a_step_that_is_saved_again_survives_a_kill(tmp_path, accelerator):
    path = save_checkpoint(tmp_path, make_state(steps=2), accelerator, 2)
    shutil.copytree(path, tmp_path / ".step-000002.old")
    path.rename(tmp_path / ".step-000002.writing")
    assert newest_checkpoint(tmp_path).name == "step-000002"


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in .*--overwrite"):
        newest_checkpoint(tmp_path / "checkpoints")


def test_another_model_is_an_error(tmp_path, accelerator):
    path = save_checkpoint(tmp_path, make_state(), accelerator, 2)
    with pytest.raises(UserError, match="2 parameters differ.*e.g. 0.weight"):
        load_checkpoint(path, make_state(width=4), accelerator)


def test_more_processes_keep_what_there_was_and_draw_the_rest_anew(tmp_path, accelerator, capsys):
    """From seed, step and rank: the same whenever that number of processes goes on from there."""
    torch.manual_seed(5)
    path = save_checkpoint(tmp_path, make_state(steps=2), accelerator, 2)
    kept, draws = torch.rand(1), []
    for rank in (0, 1, 2, 1):
        of_rank = SimpleNamespace(device=CPU, scaler=None, num_processes=3, process_index=rank)
        load_checkpoint(path, make_state(), of_rank)
        draws.append(torch.rand(1))
    assert draws[0] == kept and draws[1] == draws[3]
    assert len({float(draw) for draw in draws}) == 3
    assert "had 1 process, now there are 3: the rows of each step" in capsys.readouterr().err


def test_generators_repeat():
    state = generator_state(CPU)
    draws = [(random.random(), np.random.normal(), torch.randn(1)) for _ in range(3)]
    set_generator_state(state, CPU)
    assert draws == [(random.random(), np.random.normal(), torch.randn(1)) for _ in range(3)]


def test_a_damaged_checkpoint_is_named_and_strange_folders_are_passed_over(tmp_path, accelerator):
    save_checkpoint(tmp_path, make_state(steps=2), accelerator, 2)
    (tmp_path / "step-old").mkdir()
    newest = newest_checkpoint(tmp_path)
    for name in ("state.pt", "trainable.safetensors"):
        whole = (newest / name).read_bytes()
        (newest / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="step-000002 is damaged"):
            load_checkpoint(newest, make_state(), accelerator)
        (newest / name).write_bytes(whole)


def test_a_longer_plan_takes_its_own_rate_at_once(tmp_path, accelerator):
    save_checkpoint(tmp_path, make_state(steps=10), accelerator, 2)  # a linear plan of 10: rate 0
    longer = make_state()
    longer.schedule = make_schedule(longer.optimizer, "linear", 20, 0)
    load_checkpoint(tmp_path / "step-000010", longer, accelerator)
    assert longer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 10 / 20)
    assert longer.schedule.get_last_lr()[0] == pytest.approx(0.1 * 10 / 20)

"""Processes of torchrun find each other, and none that died before them."""

import os
import time

import pytest
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch.distributed import TCPStore

from tests.killing import start
from tuninglab.errors import UserError
from tuninglab.training.meeting import meet


def test_processes_that_torchrun_restarts_do_not_wait_for_those_that_died(tmp_path):
    """The store is torchrun's, and stays; the second process comes late to each meeting."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(store.port)}

    def attempt(number: int) -> None:
        os.environ.update(agent, TORCHELASTIC_RESTART_COUNT=str(number))
        if os.environ["RANK"] == "1":
            time.sleep(0.5)
        meet()
        held = [os.environ["RANK"]]
        broadcast_object_list(held)
        print("heard:", held[0])

    for number in range(3):
        said = start(lambda n=number: attempt(n), tmp_path, tmp_path / "log", processes=2).said
        assert said.count("heard: 0\n") == 2


@pytest.fixture
def just_started():
    """accelerate knows nothing yet of this process, and nothing of the test afterwards."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_processes_without_a_place_to_meet_are_told(just_started, monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE .* is 2.* do not meet.*torchrun"):
        meet()
    monkeypatch.setenv("WORLD_SIZE", "1")
    meet()

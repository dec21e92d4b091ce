import pytest
import torch

from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.training import hardware
from tuninglab.training.hardware import (
    choose_precision,
    make_accelerator,
    peak_memory_mib,
    precision_of,
)


def test_fp16_on_a_cpu_is_refused_with_the_remedy():
    with pytest.raises(UserError, match="--precision fp16.*CPU.*fp32, bf16 or auto"):
        choose_precision("fp16", "cpu", Choices())


@pytest.mark.parametrize(
    ("device", "native", "chosen"),
    [
        ("cpu", True, "bf16"),
        ("cpu", False, "fp32"),
        ("cuda", True, "bf16"),
        ("cuda", False, "fp16"),
    ],
)
def test_auto_takes_what_the_device_has_and_says_why(monkeypatch, device, native, chosen):
    monkeypatch.setattr(hardware, "_has_bf16", lambda device: native)
    choices = Choices()
    assert choose_precision("auto", device, choices) == chosen
    assert choices.made[0]["value"] == chosen
    assert "bf16" in choices.made[0]["reason"]


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(monkeypatch, asked):
    monkeypatch.setattr(hardware, "_has_bf16", lambda device: False)
    choices = Choices()
    assert choose_precision(asked, "cpu", choices) == asked
    assert ("slow" in choices.made[0]["reason"]) == (asked == "bf16")


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [({"avx512_bf16": True}, True), ({"avx2": True, "amx_bf16": False}, False), ({}, False)],
)
def test_bf16_of_a_cpu_is_read_from_its_capabilities(monkeypatch, capabilities, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert hardware._has_bf16("cpu") is native


def test_two_runs_of_one_process_may_differ_in_precision():
    for name in ("bf16", "fp32", "bf16"):
        accelerator = make_accelerator(name, Choices())
        assert precision_of(accelerator) == name
        with accelerator.autocast():
            x = torch.ones(2, 2, device=accelerator.device)
            assert (x @ x).dtype == hardware.DTYPES[name]


def test_peak_memory_is_that_of_the_process():
    before = peak_memory_mib(torch.device("cpu"))
    block = torch.ones(64 * 2**18)  # 64 MiB
    assert 10 < before <= peak_memory_mib(torch.device("cpu")) < 2**20
    assert block.sum() > 0


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    make_accelerator("fp32", Choices())
    # accelerate keeps what it found at first: one process.
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="started 2 processes.*nproc_per_node=1"):
        make_accelerator("fp32", Choices())

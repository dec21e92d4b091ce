import os
from pathlib import Path

import pytest
import torch

from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.training import hardware
from tuninglab.training.hardware import (
    check_processes,
    choose_precision,
    make_accelerator,
    peak_memory_mib,
    precision_of,
    reset_peak_memory,
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


CPU = torch.device("cpu")


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_peak_memory_counts_from_its_reset_on():
    block = torch.ones(256 * 2**18)  # 256 MiB, as loading a model takes and gives back
    high = peak_memory_mib(CPU)
    assert high > block.nbytes / 2**20
    del block
    # The kernel counts pages in batches, so that a few may be missing.
    assert peak_memory_mib(CPU) > high - 8
    assert reset_peak_memory(CPU)
    low = peak_memory_mib(CPU)
    assert low == pytest.approx(resident_mib(), abs=32)
    assert low < high - 200
    again = torch.ones(64 * 2**18)
    assert peak_memory_mib(CPU) == pytest.approx(low + 64, abs=16)
    assert again.sum() > 0


def test_where_the_system_does_not_count_anew_it_is_the_peak_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "PROCESS", tmp_path / "none")
    before = peak_memory_mib(CPU)
    assert not reset_peak_memory(CPU)
    block = torch.ones(64 * 2**18)
    assert 10 < before <= peak_memory_mib(CPU) < 2**20
    assert block.sum() > 0


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    make_accelerator("fp32", Choices())
    # accelerate keeps what it found at first: one process.
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="started 2 processes.*nproc_per_node=1"):
        make_accelerator("fp32", Choices())


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("RANK", {"RANK": "x"}),
        ("RANK", {"RANK": "-1"}),
        ("RANK", {"RANK": ""}),
        ("LOCAL_RANK", {"LOCAL_RANK": "y"}),
        ("WORLD_SIZE", {"WORLD_SIZE": "two"}),
        ("WORLD_SIZE", {"WORLD_SIZE": "0"}),
        ("WORLD_SIZE", {"WORLD_SIZE": "9" * 5000}),
        ("RANK", {"RANK": "2", "WORLD_SIZE": "2"}),
    ],
)
def test_nonsense_about_processes_names_its_variable(name, environment):
    with pytest.raises(UserError, match=f"{name} .*unset") as caught:
        check_processes(environment)
    # What is shown of a value has 400 letters at most.
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": "3", "WORLD_SIZE": "1"}, {"RANK": "1"}, {"RANK": "1", "WORLD_SIZE": "2"}],
)
def test_what_torchrun_and_job_templates_say_of_processes_passes(environment):
    check_processes(environment)


@pytest.mark.parametrize(
    ("most", "free"), [("max", 3000), (str(5000 * 1024), 3000), (str(1500 * 1024), 500), ("900", 0)]
)
def test_free_memory_is_that_of_the_machine_or_of_its_container(monkeypatch, tmp_path, most, free):
    monkeypatch.setattr(hardware, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    cpu = torch.device("cpu")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert hardware.free_memory_bytes(cpu) == pages // 2
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    3000 kB\nX: 1 kB\n")
    assert hardware.free_memory_bytes(cpu) == 3000 * 1024
    (tmp_path / "memory.max").write_text(most)
    (tmp_path / "memory.current").write_text(str(1000 * 1024))
    assert hardware.free_memory_bytes(cpu) == free * 1024


def test_pages_of_files_that_nobody_uses_are_free_in_a_container(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemAvailable: 3000 kB\n")
    (tmp_path / "memory.max").write_text("1500000")
    (tmp_path / "memory.current").write_text("1400000")
    (tmp_path / "memory.stat").write_text("active_file 7\ntotal_inactive_file 9\nfile 5\n")
    assert hardware.free_memory_bytes(torch.device("cpu")) == 100_000
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 800000\nfile 5\n")
    assert hardware.free_memory_bytes(torch.device("cpu")) == 900_000
    (tmp_path / "memory.stat").write_text("inactive_file\n")
    assert hardware.free_memory_bytes(torch.device("cpu")) == 100_000

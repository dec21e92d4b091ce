"""The speed of a machine: what is made of it, and that it is kept safely."""

import json
import os
from dataclasses import asdict, replace

import pytest
import torch

from tuninglab.inspection import machine_speed
from tuninglab.inspection.cost import Cost
from tuninglab.inspection.machine_speed import Speed, speed_of

CPU = torch.device("cpu")
SPEED = Speed({"fp32": 1e9, "bf16": 2e9}, {"fp32": 1e8, "bf16": 5e7}, 1e9, 1e-3, 0.1)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The cache is a folder of its own; counts how often is measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(machine_speed, "measure", lambda device: calls.append(device) or SPEED)
    return calls


def kept(tmp_path):
    (place,) = (tmp_path / "tuninglab").glob("speed-*.json")
    return place


def test_a_step_takes_its_products_passes_and_calls():
    cost = Cost({}, {}, {"fp32": 2e9, "bf16": 2e9}, moved=3e8, streamed=1e8, calls=100)
    assert SPEED.seconds(cost, "fp32") == pytest.approx(2 + 1 + 2 + 0.1 + 0.1)
    assert SPEED.seconds(cost, "bf16") == pytest.approx(2 + 1 + 4 + 0.1 + 0.1)
    # A format that was not measured is as slow as the slowest; a GPU works while others are called.
    assert SPEED.seconds(Cost({}, {}, {"int8": 1e9}, 0), "bf16") == pytest.approx(1)
    gpu = replace(SPEED, waits=False)
    assert gpu.seconds(Cost({}, {}, {"fp32": 1e9}, 0, calls=3000), "fp32") == pytest.approx(3)
    assert gpu.seconds(Cost({}, {}, {"fp32": 5e9}, 0, calls=3000), "fp32") == pytest.approx(5)


def test_it_is_measured_once(measured, tmp_path):
    assert speed_of(CPU) == speed_of(CPU) == SPEED
    assert len(measured) == 1
    assert os.stat(kept(tmp_path).parent).st_mode & 0o077 == 0


def test_another_number_of_threads_is_measured_anew(measured, monkeypatch):
    speed_of(CPU)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    speed_of(CPU)
    assert len(measured) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda known: "",
        lambda known: "[1]",
        lambda known: json.dumps({**known, "spread": float("nan")}),
        lambda known: json.dumps({**known, "call_s": 0}),
        lambda known: json.dumps({**known, "stream": "fast"}),
        lambda known: json.dumps({**known, "products": {"bf16": 1.0}}),
        lambda known: json.dumps({**known, "products": {"fp32": -1.0}}),
        lambda known: json.dumps({**known, "passes": [1, 2]}),
        lambda known: json.dumps({k: v for k, v in known.items() if k != "stream"}),
        lambda known: json.dumps({**known, "more": 1}),
    ],
)
def test_a_damaged_file_is_measured_anew(change, measured, tmp_path):
    speed_of(CPU)
    kept(tmp_path).write_text(change(asdict(SPEED)))
    assert speed_of(CPU) == SPEED
    assert len(measured) == 2
    # And written whole again.
    assert speed_of(CPU) == SPEED
    assert len(measured) == 2


def test_a_link_in_its_place_is_not_followed(measured, tmp_path):
    speed_of(CPU)
    place, elsewhere = kept(tmp_path), tmp_path / "elsewhere.json"
    elsewhere.write_text(json.dumps({**asdict(SPEED), "spread": 0.7}))
    place.unlink()
    place.symlink_to(elsewhere)
    assert speed_of(CPU) == SPEED
    assert json.loads(elsewhere.read_text())["spread"] == 0.7


def test_without_a_folder_it_is_measured_each_time(measured, monkeypatch):
    monkeypatch.setattr(machine_speed, "cache_folder", lambda: (None, "no home"))
    speed_of(CPU), speed_of(CPU)
    assert len(measured) == 2


def test_what_is_measured_is_a_speed(monkeypatch):
    for name, value in (("TOKENS", 16), ("WIDE", 64), ("PASSED", 2**12), ("ROUNDS_S", 0.0)):
        monkeypatch.setattr(machine_speed, name, value)
    speed = machine_speed.measure(CPU)
    assert {"fp32", "bf16"} <= speed.products.keys()
    numbers = [*speed.products.values(), *speed.passes.values(), speed.stream, speed.call_s]
    assert all(0 < number < float("inf") for number in numbers)

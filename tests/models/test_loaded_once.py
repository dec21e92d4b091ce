"""Two processes of one machine: the first makes a model, both compute with it."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from tests.tiny import flamingo, flamingo_config
from tests.worlds import all_well, in_world
from tuninglab.models import loaded_once as module
from tuninglab.models.loaded_once import loaded_once, once


def make():
    return flamingo(flamingo_config(text={"tie_word_embeddings": True}), 0.5), {"missing": []}


def test_alone_it_is_made_as_ever():
    made = object()
    assert once(lambda: made, lambda given: torch.nn.Linear(1, 1)) is made


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """The first process of a machine, which waits for no others; its temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "gather_object", list)
    return tmp_path


def test_a_disk_that_fills_while_it_is_written_leaves_the_model_as_it_was_made(
    alone, monkeypatch, capsys
):
    def full(made, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    made = torch.nn.Linear(1, 1)
    with loaded_once(0, 0):
        assert once(lambda: made, lambda given: given) is made
    assert "each process makes its own" in " ".join(capsys.readouterr().err.split())
    assert not list(alone.iterdir())


def test_what_cannot_be_written_for_another_reason_leaves_nothing(alone, monkeypatch):
    def stopped(made, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stopped)
    with loaded_once(0, 0), pytest.raises(KeyboardInterrupt):
        once(lambda: torch.nn.Linear(1, 1), lambda given: given)
    assert not list(alone.iterdir())


def test_what_killed_processes_left_goes_with_the_next_start(alone):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = socket.gethostname()
    names = (f"{host}-{gone.pid}", f"{host}-{os.getpid()}", f"{host}-{os.getppid()}")
    names = (*names, f"else-{gone.pid}", f"{host}-word")
    folders = [alone / f"tuninglab-base-{name}-x" for name in names]
    for folder in folders:
        folder.mkdir()
        (folder / "model.pt").write_bytes(b"half")
    with loaded_once(0, 0):
        once(lambda: torch.nn.Linear(1, 1), lambda given: given)
    # Those of processes that run, of another host, and of who knows whom.
    assert sorted(alone.iterdir()) == sorted(folders[2:])


@pytest.mark.slow
@pytest.mark.parametrize("room", [True, False])
def test_it_is_made_once_where_the_disk_has_room(tmp_path, monkeypatch, room):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not room:
        full = SimpleNamespace(free=0)
        monkeypatch.setattr(shutil, "disk_usage", lambda place: full)

    def work():
        rank, made = Accelerator(cpu=True).process_index, []

        def read():
            made.append(rank)
            return make()

        with loaded_once(rank, rank):
            model, info = once(read, lambda given: given[0])
        with torch.no_grad():
            logits = model(torch.arange(5)[None]).logits
            # One's own: the other process sees nothing of it.
            model.get_input_embeddings().weight.fill_(rank)
        Accelerator(cpu=True).wait_for_everyone()
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        value = float(model.get_input_embeddings().weight[0, 0])
        told = {"made": len(made), "sum": float(logits.sum()), "tied": tied, "value": value}
        Path(tmp_path / f"{rank}.json").write_text(json.dumps(told | info))

    all_well(in_world(2, work, tmp_path))
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["made"] for one in told] == [1, 0 if room else 1]
    with torch.no_grad():
        expected = float(make()[0](torch.arange(5)[None]).logits.sum())
    for rank, one in enumerate(told):
        assert (one["sum"], one["tied"], one["value"]) == (expected, True, rank)
    assert not list(tmp_path.glob("tuninglab-*"))

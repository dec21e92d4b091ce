"""Two processes of one machine: the first makes a model, both compute with it."""

import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from tests.tiny import flamingo, flamingo_config
from tests.worlds import all_well, in_world
from tuninglab.models.loaded_once import loaded_once, once


def make():
    return flamingo(flamingo_config(text={"tie_word_embeddings": True}), 0.5), {"missing": []}


def test_alone_it_is_made_as_ever():
    made = object()
    assert once(lambda: made, lambda given: torch.nn.Linear(1, 1)) is made


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

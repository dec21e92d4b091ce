"""Processes are started for real: two of torchrun for what is shared out, one for shards."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from tests.tiny import colour_flamingo, tiny_tokenizer
from tests.worlds import all_well, in_world
from tuninglab.adapters.lora import tune
from tuninglab.adapters.saving import adapter_state, save_adapter
from tuninglab.config.tuning import TuningConfig
from tuninglab.errors import WorkError
from tuninglab.models.weights import is_sharded, put, whole
from tuninglab.training.checkpoint import load_trainable, trainable_weights
from tuninglab.training.parallel import lost_processes_told, over_processes, shared_out
from tuninglab.training.sharding import gathered, shard


class Lazy:
    """Indexable, and nothing else: as the controls of the demo are."""

    def __len__(self):
        return 5

    def __getitem__(self, number):
        return f"item {number}"


def share_out(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    rank, seen, layer = accelerator.process_index, [], torch.nn.Linear(1, 1)

    def work(items):
        seen.extend(items[k] for k in range(len(items)))
        return [f"{item} by {rank}" for item in seen]

    results = shared_out(work, layer, accelerator)(Lazy())
    none = shared_out(lambda items: ["x"] * len(items), layer, accelerator)([])
    total = over_processes(torch.tensor([1.0, rank]), accelerator).tolist()
    told = {"results": results, "seen": seen, "none": none, "total": total}
    (folder / f"{rank}.json").write_text(json.dumps(told))


def shard_and_save(folder: Path) -> None:
    """In a group of one process, where whole weights are sharded as well."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    model = tune(colour_flamingo(tiny_tokenizer()), TuningConfig())
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    before, saved = trainable_weights(model), adapter_state(model)
    shard(model, torch.device("cpu"))
    assert is_sharded(model) and all(isinstance(p, DTensor) for p in model.parameters())
    after = trainable_weights(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert not any(isinstance(tensor, DTensor) for tensor in after.values())
    again = adapter_state(model)
    assert saved.keys() == again.keys() and all(torch.equal(saved[n], again[n]) for n in saved)
    load_trainable(model, {name: tensor + 1 for name, tensor in before.items()}, folder)
    assert all(torch.equal(t, before[n] + 1) for n, t in trainable_weights(model).items())
    with gathered(model):
        assert not is_sharded(model)
    assert is_sharded(model)
    save_adapter(model, folder / "adapter")


@pytest.mark.slow
def test_work_is_shared_out_and_all_have_all_results(tmp_path):
    all_well(in_world(2, lambda: share_out(tmp_path), tmp_path))
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for rank in ranks:
        assert rank["results"] == [f"item {n} by {n % 2}" for n in range(5)]
        assert (rank["none"], rank["total"]) == ([], [2.0, 1.0])
    # Each item was computed once.
    assert [rank["seen"] for rank in ranks] == [
        ["item 0", "item 2", "item 4"],
        ["item 1", "item 3"],
    ]


@pytest.mark.slow
def test_sharded_weights_are_saved_and_loaded_whole(tmp_path):
    all_well(in_world(1, lambda: shard_and_save(tmp_path), tmp_path))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    # Not by the name that FSDP gave the class.
    assert config["auto_mapping"]["base_model_class"] == "FlamingoForConditionalGeneration"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_an_exchange_that_fails_is_told_apart_from_mistakes(said, told):
    kind, words = (WorkError, "Another process") if told else (RuntimeError, "mat1")
    with pytest.raises(kind, match=words), lost_processes_told():
        raise RuntimeError(said)


class Ranks:
    """Stands for an accelerator of several processes, seen from one."""

    num_processes, process_index = 2, 1


def test_alone_nothing_is_shared_out():
    alone = Ranks()
    alone.num_processes = 1

    def work(items):
        return items

    assert shared_out(work, torch.nn.Linear(1, 1), alone) is work


def test_whole_and_put_leave_plain_tensors_alone():
    layer = torch.nn.Linear(2, 3)
    assert not is_sharded(layer)
    copy = whole(dict(layer.named_parameters()))
    assert all(not tensor.requires_grad for tensor in copy.values())
    put(layer.weight, torch.ones(3, 2))
    assert torch.equal(layer.weight, torch.ones(3, 2)) and layer.weight.requires_grad

"""Processes are started for real: two of torchrun for what is shared out, one for shards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tuninglab.models.weights import is_sharded, put, whole
from tuninglab.training.parallel import shared_out

ROOT = Path(__file__).resolve().parents[2]

SHARES = """
import json, sys
from accelerate import Accelerator
from torch import nn
from tuninglab.training.parallel import over_processes, shared_out
import torch

class Lazy:
    # Indexable, and nothing else: as the controls of the demo are.
    def __len__(self): return 5
    def __getitem__(self, number): return f"item {number}"

accelerator = Accelerator(cpu=True)
rank, seen = accelerator.process_index, []

def work(items):
    seen.extend(items[k] for k in range(len(items)))
    return [f"{item} by {rank}" for item in seen]

results = shared_out(work, nn.Linear(1, 1), accelerator)(Lazy())
none = shared_out(lambda items: ["x"] * len(items), nn.Linear(1, 1), accelerator)([])
total = over_processes(torch.tensor([1.0, rank]), accelerator).tolist()
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump({"results": results, "seen": seen, "none": none, "total": total}, file)
# As the product ends: a process that exits with its group open may die in gloo's threads.
accelerator.end_training()
"""

SHARDED = """
import sys
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from tests.tiny import colour_flamingo, tiny_tokenizer
from tuninglab.adapters.lora import tune
from tuninglab.adapters.saving import adapter_state, save_adapter
from tuninglab.config.tuning import TuningConfig
from tuninglab.models.gated_cross_attention import FlamingoLayer
from tuninglab.training.checkpoint import load_trainable, trainable_weights
from tuninglab.models.weights import is_sharded

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
model = tune(colour_flamingo(tiny_tokenizer()), TuningConfig())
for parameter in model.parameters():
    if parameter.requires_grad:
        torch.nn.init.normal_(parameter)
before, saved = trainable_weights(model), adapter_state(model)
for module in model.modules():
    if isinstance(module, FlamingoLayer):
        fully_shard(module)
assert is_sharded(model) and any(isinstance(p, DTensor) for p in model.parameters())
after = trainable_weights(model)
assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
assert not any(isinstance(tensor, DTensor) for tensor in after.values())
again = adapter_state(model)
assert saved.keys() == again.keys() and all(torch.equal(saved[n], again[n]) for n in saved)
load_trainable(model, {name: tensor + 1 for name, tensor in before.items()}, sys.argv[1])
assert all(torch.equal(t, before[n] + 1) for n, t in trainable_weights(model).items())
save_adapter(model, sys.argv[1] + "/adapter")
print("done", flush=True)
dist.destroy_process_group()
"""


def run(script: str, folder: Path, processes: int = 1) -> subprocess.CompletedProcess:
    file = folder / "script.py"
    file.write_text(script)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launch if processes > 1 else []), str(file), str(folder)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_work_is_shared_out_and_all_have_all_results(tmp_path):
    run(SHARES, tmp_path, processes=2)
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
    assert run(SHARDED, tmp_path).stdout.endswith("done\n")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


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

"""Peak memory of one training step, measured in a process of its own, and what it is made of.

On a CPU it is the resident memory of the process above what it held once everything was imported
and tried on a small model; on a GPU the peak of torch's allocator. The second and third step count:
in the first, the optimizer's states do not exist yet.
"""

import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tuninglab.comparison.variants import Training, Variant
from tuninglab.comparison.workloads import Bench, save_random
from tuninglab.data.batches import Batch
from tuninglab.errors import WorkError
from tuninglab.models.weights import bytes_held, storage_key
from tuninglab.training.hardware import peak_memory_mib, reset_peak_memory

# glibc keeps in its heap some of what is freed. With these thresholds every tensor above 64 KiB is
# mapped alone and goes back when it is freed: less memory, but page faults make a step two to three
# times as long. Peaks are measured both ways; times, and the ratios, belong to the usual one.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
MIB = 2**20
SAID_LINES = 5  # of a traceback: the error and where it was
TABLES = ("shared", "embed_tokens", "lm_head")


def measure_memory(variant: Variant, bench: Bench) -> dict[str, Any]:
    """Peak of a step in MiB over the process before, and its split, from fresh processes.

    Args:
        variant: the row.
        bench: where; the process has as many threads as this one.

    Returns `peak_memory_mib`, `base_memory_mib` (what the process held before), `build_peak_mib`
    (None where the system does not tell), `memory_split_mib`, and on a CPU `peak_returned_mib`: the
    peak where memory goes back to the system as soon as it is free (ALLOCATOR).

    Raises:
        WorkError: a process failed.
    """
    figures = _in_child(variant, bench, {})
    if bench.device.type == "cpu":
        returned = _in_child(variant, bench, ALLOCATOR)
        figures["peak_returned_mib"] = returned["peak_memory_mib"]
    return figures


def _in_child(variant: Variant, bench: Bench, environment: dict[str, str]) -> dict[str, Any]:
    # Where this package was found, it is found again, whatever the working directory.
    root = Path(__file__).resolve().parents[2]
    # Not the base as it is: the process stands elsewhere.
    bench = replace(bench, base=bench.base.resolve())
    command = [sys.executable, "-c", "from tuninglab.comparison.memory import child; child()"]
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, **environment},
        input=pickle.dumps((variant, bench, torch.get_num_threads())),
        capture_output=True,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        reason = "\n".join(said[-SAID_LINES:])
        raise WorkError(f"Measuring the memory of {variant.config!r} failed:\n{reason}")
    return json.loads(done.stdout.decode().splitlines()[-1])


def child() -> None:
    """In the fresh process: take the task from standard input, print the figures as JSON."""
    variant, bench, threads = pickle.loads(sys.stdin.buffer.read())
    torch.set_num_threads(threads)
    # Loads libraries and kernels that only come with their first use, as an import would.
    with tempfile.TemporaryDirectory() as folder:
        _train_small(variant, Bench(bench.workload.small(), Path(folder), bench.device))
    gc.collect()
    resets, base = reset_peak_memory(bench.device), peak_memory_mib(bench.device)
    training = variant.build(bench, 0)
    gc.collect()
    figures: dict[str, Any] = {"base_memory_mib": round(base, 1)}
    build_peak = peak_memory_mib(bench.device) - base
    figures["build_peak_mib"] = round(build_peak, 1) if resets else None
    batch = bench.batch(0)
    training.step(batch)
    reset_peak_memory(bench.device)
    training.step(batch)
    training.step(batch)
    peak = peak_memory_mib(bench.device) - base
    figures["peak_memory_mib"] = round(peak, 1)
    figures["memory_split_mib"] = split(training, batch, peak, bench.workload.vocabulary)
    print(json.dumps(figures))


def split(training: Training, batch: Batch, peak_mib: float, vocabulary: int) -> dict[str, float]:
    """What a step holds, in MiB; `rest` is what is left of the peak: temporary memory.

    The parts are not all alive at one moment: gradients come when activations go, so `rest` can
    be below 0 where the peak lies early in the backward pass.
    """
    model, optimizer = training.state.model, training.state.optimizer
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    trained = [tensor for tensor in tensors.values() if tensor.requires_grad]
    states = [t for tensor in trained for t in optimizer.state[tensor].values() if t.ndim]
    frozen = {name: tensor for name, tensor in tensors.items() if not tensor.requires_grad}
    tables = [t for name, t in frozen.items() if any(part in TABLES for part in name.split("."))]
    table_bytes = bytes_held(tables)
    parts = {
        # A table that is tied to another, or lies in one storage with it, counts with the tables.
        "weights": bytes_held(frozen.values()) - table_bytes,
        "embeddings_head": table_bytes,
        # And a gradient, as large as what it is of.
        "lora_gradients_optimizer": 2 * bytes_held(trained) + bytes_held(states),
    }
    storages = set(map(storage_key, tensors.values()))
    with saved_for_backward(storages) as saved:
        loss = training.loss(batch)
    del loss
    logits = [tensor for tensor in saved.values() if tensor.columns == vocabulary]
    parts["logits"] = sum(tensor.bytes for tensor in logits)
    parts["activations"] = sum(tensor.bytes for tensor in saved.values()) - parts["logits"]
    mib = {name: round(size / MIB, 1) for name, size in parts.items()}
    return {**mib, "rest": round(peak_mib - sum(mib.values()), 1)}


class Saved(NamedTuple):
    """A storage that the backward pass needs, and the width of the tensor that came with it."""

    bytes: int
    columns: int


@contextmanager
def saved_for_backward(known: set[int]) -> Iterator[dict[int, Saved]]:
    """Collect the storages saved for backward by what runs inside, each once, by address.

    Args:
        known: addresses of storages that do not count, such as those of parameters.
    """
    saved: dict[int, Saved] = {}

    def note(tensor: Tensor) -> Tensor:
        if storage_key(tensor) not in known:
            columns = tensor.shape[-1] if tensor.ndim else 1
            saved.setdefault(storage_key(tensor), Saved(bytes_held([tensor]), columns))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved


def _train_small(variant: Variant, bench: Bench) -> None:
    save_random(bench.workload, bench.base)
    training, batch = variant.build(bench, 0), bench.batch(0)
    for _ in range(2):
        training.step(batch)
    split(training, batch, 0.0, bench.workload.vocabulary)

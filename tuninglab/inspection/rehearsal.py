"""What a training step costs, found by making the step without numbers.

No formula per family of models: the loop's own forward and backward pass run on shapes
(kernels/shapes.py), while a ledger keeps account of what is allocated, calculated and moved. So
what savers, checkpointing, frozen towers and int8 layers keep is what they would really keep.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

from tuninglab.data.batches import Batch
from tuninglab.errors import UserError
from tuninglab.inspection.cost import Cost, Shape
from tuninglab.inspection.ledger import WEIGHTS, Ledger, by_module
from tuninglab.inspection.planned_batch import batch_of
from tuninglab.inspection.shared_cost import Parallel, shared
from tuninglab.inspection.tree_stats import number_format
from tuninglab.int8.linear import Int8Linear
from tuninglab.kernels import attention
from tuninglab.kernels.shapes import without_numbers
from tuninglab.models.named_parts import SCOPE, part_namer
from tuninglab.models.weights import bytes_held
from tuninglab.training.hardware import DTYPES, held_memory_bytes
from tuninglab.training.loop import set_training_mode
from tuninglab.training.step import batch_loss

PARTS = {
    "lm": "language model",
    "vision": "vision tower",
    "unused": "vision tower",
    "perceiver": "Perceiver",
    "cross_attention": "gated cross-attention",
    "gates": "gated cross-attention",
    "embeddings": "token tables",
    "head": "token tables",
}
MIB = 2**20
# Of what a step's tensors take at their highest moment, what glibc's heap keeps free besides, by
# the format of the base (fitted to benchmarks/plan.py with 2 threads; docs/runs.md says why). torch
# asks for addresses that 64 divides; of the scraps around each tensor some are kept for later and
# stand between neighbours, so what a tensor leaves is too small for the next one of its size.
# Tensors from LARGEST on are mapped apart and go back.
KEPT_BY_HEAP = {"int8": 0.55, "fp32": 0.5, "bf16": 0.8, "fp16": 0.8}
LARGEST = 32 * MIB  # DEFAULT_MMAP_THRESHOLD_MAX in glibc's malloc.c
# What a run has that a plan has not: code that was paged in, libraries of pictures, and what
# loading, validating and scoring left in the heap (of a Flamingo, and of a T5); and what oneDNN
# keeps of each shape that it has multiplied in bf16. Fitted as KEPT_BY_HEAP.
RUN_BESIDES = {True: 150 * MIB, False: 40 * MIB}
KEPT_PRODUCTS = 40 * MIB
# Of cuBLAS on Hopper, which takes it from torch's allocator; on older GPUs a quarter.
GPU_WORKSPACE = 32 * MIB


def step_cost(
    model: Any,
    shape: Shape,
    precision: str,
    *,
    accumulation: int = 1,
    backward: bool = True,
    device: Literal["cpu", "cuda"] = "cpu",
    parallel: Parallel = "ddp",
    processes: int = 1,
    process_bytes: int | None = None,
) -> Cost:
    """What a step of training costs each process.

    Args:
        model: PEFT's, from `planned_model`, or loaded; it is left as it is.
        shape: of one batch.
        precision: fp32, bf16 or fp16: of autocast.
        accumulation: forward passes a step.
        backward: False: a validation batch, which leaves no gradients.
        device: kind of the device that computes.
        parallel: how several processes share the work.
        processes: that train together.
        process_bytes: what the process holds besides tensors; None: `process_held(model)`.

    Raises:
        UserError: what the model does depends on numbers.
    """
    held, ledger = weights_held(model), Ledger(large=LARGEST)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # AdamW's two moments are float32, as what trains is.
    gradients = bytes_held(trained)
    held["optimizer"] = 2 * gradients
    _rehearse(model, shape, precision, ledger, backward, device, accumulation > 1)
    step = {name: size for name, size in ledger.at_peak.items() if size and name != WEIGHTS}
    if backward:
        update = _update(trained, device)
        step = max(step, update, key=lambda parts: sum(parts.values()))
    if device == "cpu":
        held["process"] = process_held(model) if process_bytes is None else process_bytes
        if precision == "bf16":
            held["process"] += KEPT_PRODUCTS
        int8 = any(isinstance(module, Int8Linear) for module in model.modules())
        in_heap = max(0, sum(step.values()) - ledger.large_at_peak)
        if platform.libc_ver()[0] == "glibc":
            step["kept by the heap"] = int(KEPT_BY_HEAP["int8" if int8 else precision] * in_heap)
    else:
        held["workspace"] = GPU_WORKSPACE
    times = accumulation if backward else 1
    operations = {name: count * times for name, count in ledger.operations.items()}
    counted = {name: getattr(ledger, name) * times for name in ("moved", "streamed", "calls")}
    cost = Cost(held, step, operations, **counted)
    if processes == 1:
        return cost
    return shared(cost, model, parallel, processes, times, backward)


def weights_held(model: Any) -> dict[str, int]:
    """Bytes of a model's tensors, by part and number format; what trains stands apart."""
    is_flamingo = hasattr(_base(model), SCOPE)
    part_of = part_namer(model) if is_flamingo else (lambda name: "lm")
    groups: dict[str, list[Tensor]] = {}
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in {id(tensor): (name, tensor) for name, tensor in named}.values():
        label = f"{PARTS[part_of(name)]} {number_format(tensor)}"
        if tensor.requires_grad:
            label = "LoRA" if "lora_" in name else "trained in full"
        groups.setdefault(label, []).append(tensor)
    return {label: bytes_held(tensors) for label, tensors in groups.items()}


def process_held(model: Any, resident: int | None = None) -> int:
    """Bytes of this process without the model's: the interpreter, its libraries, data.

    A model without weights is planned before all that a run has besides was loaded, which is added.

    Args:
        model: PEFT's, with weights or without.
        resident: what the process held at the moment that counts; None: now.
    """
    resident = held_memory_bytes(torch.device("cpu")) if resident is None else resident
    tensors = [*model.parameters(), *model.buffers()]
    loaded = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    if not loaded:
        return resident + RUN_BESIDES[hasattr(_base(model), SCOPE)]
    return max(0, resident - bytes_held(loaded))


def _base(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _rehearse(
    model: Any,
    shape: Shape,
    precision: str,
    ledger: Ledger,
    backward: bool,
    device: str,
    accumulates: bool,
) -> None:
    """Make a forward pass, and a backward pass, under a ledger; the model is left as it was."""
    modes = {module: module.training for module in model.modules()}
    set_training_mode(model) if backward else model.eval()
    half = torch.autocast("cpu", DTYPES[precision]) if precision != "fp32" else nullcontext()
    try:
        with ExitStack() as stack:
            for context in (ledger, without_numbers(model, ledger), half, _attention_of(device)):
                stack.enter_context(context)
            if accumulates and backward:
                # From the batches before: those of this one are added to them.
                with ledger.labelled("gradients"):
                    for parameter in _trained(model):
                        parameter.grad = torch.zeros_like(parameter)
            with ledger.labelled("pictures and text"):
                batch = batch_of(_base(model), shape)
            _passes(model, batch, ledger, backward)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(
            f"{type(_base(model)).__name__} cannot be planned: what it does depends on numbers, "
            f"which are only there when it runs ({error}). Its memory has to be tried."
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


def _passes(model: Any, batch: Batch, ledger: Ledger, backward: bool) -> None:
    """The forward and backward pass of `training.step.optimizer_step`."""
    place: Any = SimpleNamespace(device=ledger.device)
    ledger.start_peak()
    with torch.set_grad_enabled(backward), by_module(model, ledger):
        with ledger.labelled("logits and loss"):
            loss = batch_loss(model, batch, 1, place)
        if not backward:
            return
        note = _gradients_in(ledger)
        hooks = [p.register_post_accumulate_grad_hook(note) for p in _trained(model)]
        # In this thread, where the ledger is.
        with ledger.labelled("backward pass"), torch.autograd.set_multithreading_enabled(False):
            loss.backward()
        for hook in hooks:
            hook.remove()


def _trained(model: nn.Module) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _gradients_in(ledger: Ledger) -> Callable[[Tensor], None]:
    def note(parameter: Tensor) -> None:
        if parameter.grad is not None:
            ledger.relabel(parameter.grad, "gradients")

    return note


def _update(trained: list[Tensor], device: str) -> dict[str, int]:
    """What clipping and AdamW hold, when activations are gone: a root of the second moments.

    On a GPU torch makes it for all tensors at once (foreach), on a CPU one by one.
    """
    sizes = [tensor.numel() * tensor.itemsize for tensor in trained]
    scratch = sum(sizes) if device == "cuda" else max(sizes, default=0)
    return {"gradients": sum(sizes), "AdamW": scratch}


@contextmanager
def _attention_of(device: str) -> Iterator[None]:
    """Within the block no attention is chosen for the sake of this machine's CPU, on a GPU."""
    chosen = attention.bf16_cpu
    if device == "cuda":
        attention.bf16_cpu = lambda: False  # pyright: ignore
    try:
        yield
    finally:
        attention.bf16_cpu = chosen

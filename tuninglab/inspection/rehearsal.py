"""What a training step costs, found by making the step without numbers.

No formula per family of models: the loop's own forward and backward pass, clipping and AdamW run on
shapes (kernels/shapes.py), while a ledger keeps account of what is allocated, calculated and moved.
So what savers, checkpointing, frozen towers and int8 layers keep is what they would really keep.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from tuninglab.data.batches import Batch
from tuninglab.data.prompt import IGNORED
from tuninglab.inspection.cost import Cost, Shape
from tuninglab.inspection.ledger import WEIGHTS, Ledger, by_module
from tuninglab.inspection.tree_stats import number_format
from tuninglab.kernels.shapes import without_numbers
from tuninglab.models.named_parts import SCOPE, part_namer
from tuninglab.models.weights import bytes_held
from tuninglab.training.hardware import DTYPES
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


def step_cost(
    model: Any,
    shape: Shape,
    precision: str,
    *,
    accumulation: int = 1,
    backward: bool = True,
    device: Literal["cpu", "cuda"] = "cpu",
    parallel: Literal["ddp", "fsdp2"] = "ddp",
    processes: int = 1,
) -> Cost:
    """What a step of training costs each process, without what the process itself takes.

    Args:
        model: PEFT's, from `planned_model`, or loaded; it is left as it is.
        shape: of one batch.
        precision: fp32, bf16 or fp16: of autocast.
        accumulation: forward passes a step.
        backward: False: a validation batch, which has no gradients.
        device: kind of the device that computes.
        parallel: how several processes share the work.
        processes: that train together.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    ledger, held = Ledger(), weights_held(model)
    mode = {module: module.training for module in model.modules()}
    try:
        _training_mode(model, backward)
        with ledger, without_numbers(model, ledger), _autocast(precision):
            if backward:
                held["optimizer"] = _first_step(model, ledger, accumulation)
            _step(model, _batch(base, shape), ledger, backward)
    finally:
        for module, training in mode.items():
            module.training = training
    # Those are in `held`.
    there = (WEIGHTS, "optimizer")
    step = {n: size for n, size in ledger.at_peak.items() if size and n not in there}
    times = accumulation if backward else 1
    operations = {name: count * times for name, count in ledger.operations.items()}
    counted = {name: getattr(ledger, name) * times for name in ("moved", "streamed", "calls")}
    cost = Cost(held, step, operations, **counted)
    return cost if processes == 1 else _shared(cost, model, parallel, processes)


def weights_held(model: Any) -> dict[str, int]:
    """Bytes of a model's tensors, by part and number format; what trains stands apart."""
    part_of = part_namer(model) if hasattr(_base(model), SCOPE) else (lambda _: "lm")
    groups: dict[str, list[Tensor]] = {}
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if tensor.requires_grad:
            label = "LoRA" if "lora_" in name else "trained in full"
        else:
            label = f"{PARTS[part_of(name)]} {number_format(tensor)}"
        groups.setdefault(label, []).append(tensor)
    return {label: bytes_held(tensors) for label, tensors in groups.items()}


def _base(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _training_mode(model: Any, backward: bool) -> None:
    """As `training.loop.set_training_mode` and validation set it."""
    from tuninglab.training.loop import set_training_mode

    if backward:
        set_training_mode(model)
    else:
        model.eval()


@contextmanager
def _autocast(precision: str) -> Iterator[None]:
    """The autocast that accelerate puts around a model's forward pass."""
    half = precision != "fp32"
    with torch.autocast("cpu", DTYPES[precision]) if half else nullcontext():
        yield


def _trained(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _first_step(model: nn.Module, ledger: Ledger, accumulation: int) -> int:
    """Make AdamW's states, which the first step leaves; with accumulation the gradients too."""
    trained = _trained(model)
    with ledger.labelled("optimizer"):
        states = [torch.zeros_like(parameter) for parameter in trained for _ in range(2)]
    model.__dict__["_planned_states"] = states
    if accumulation > 1:
        with ledger.labelled("gradients"):
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
    return bytes_held(states)


def _step(model: Any, batch: Batch, ledger: Ledger, backward: bool) -> None:
    """Forward and backward pass, as `training.step.optimizer_step` makes them."""
    place: Any = SimpleNamespace(device=ledger.device)
    ledger.start_peak()
    with torch.set_grad_enabled(backward), by_module(model, ledger):
        with ledger.labelled("logits and loss"):
            loss = batch_loss(model, batch, 1, place)
        if not backward:
            return
        hooks = [p.register_post_accumulate_grad_hook(_gradient(ledger)) for p in _trained(model)]
        with ledger.labelled("backward"), torch.autograd.set_multithreading_enabled(False):
            loss.backward()
        for hook in hooks:
            hook.remove()


def _gradient(ledger: Ledger) -> Any:
    def note(parameter: Tensor) -> None:
        if parameter.grad is not None:
            ledger.relabel(parameter.grad, "gradients")

    return note


def _batch(base: Any, shape: Shape) -> Batch:
    """A batch of a shape: marks first, labels last."""
    rows, tokens = shape.rows, shape.tokens
    answers = min(tokens, -(-shape.answer_tokens // rows))
    if not hasattr(base, SCOPE):
        ids = torch.ones(rows, tokens, dtype=torch.long)
        labels = torch.ones(rows, answers, dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        return Batch(inputs, [])
    ids = torch.ones(rows, tokens, dtype=torch.long)
    marks = torch.linspace(0, tokens - 1, min(shape.pictures, tokens) + 1).long()[:-1]
    ids[:, marks] = base.config.image_token_id
    labels = torch.full_like(ids, IGNORED)
    labels[:, tokens - answers :] = 1
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return Batch(inputs | _pictures(base, shape), [])


def _pictures(base: Any, shape: Shape) -> dict[str, Tensor]:
    """Pixels of a batch's pictures, or where the tower was left out, what it made of them."""
    vision, count = base.config.vision_config, max(1, shape.pictures)
    side = vision.image_size
    if not isinstance(base.vision_encoder, nn.Identity):
        pixels = torch.empty(shape.rows, count, shape.frames, 3, side, side)
        return {"pixel_values": pixels}
    latents = base.perceiver.latents
    if not latents.requires_grad:
        features = torch.empty(shape.rows, count, *latents.shape[-2:], dtype=latents.dtype)
        return {"image_features": features}
    patches = (shape.frames, (side // vision.patch_size) ** 2, vision.hidden_size)
    return {"patch_features": torch.empty(shape.rows, count, *patches, dtype=latents.dtype)}


def _shared(cost: Cost, model: Any, parallel: str, processes: int) -> Cost:
    return cost

"""FSDP2: each block of a model is spread over the processes, and whole only while it computes.

torch's `fully_shard`, called by us: accelerate has FSDP on accelerators alone, and there shards in
`prepare`, after the first validation. So CPUs run what GPUs run, and each process holds the whole
of no block but the one at work. Autocast, scaler, clipping and all sums stay with accelerate.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed import broadcast, get_world_size
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from tuninglab.config import TrainingConfig
from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.models.gated_cross_attention import FlamingoLayer
from tuninglab.models.loaded_once import loaded_once
from tuninglab.training.hardware import free_memory_bytes

# What else a process takes while it answers, to its share of the weights.
SPARE = 1.25


def is_to_shard(config: TrainingConfig, accelerator: Accelerator, choices: Choices) -> bool:
    """Whether weights shall be spread over the processes; says how processes share the work.

    Raises:
        UserError: these weights cannot be spread.
    """
    ranks = accelerator.num_processes
    if ranks == 1:
        if config.parallel == "fsdp2":
            choices.add("parallel", "one process", "nothing to share; start several with torchrun")
        return False
    if config.parallel == "ddp":
        choices.add("parallel", "ddp", f"the whole model in each of {ranks} processes")
        return False
    if config.base_format.startswith("bnb"):
        raise UserError(
            f"--parallel fsdp2 does not spread weights of bitsandbytes (--quantization "
            f"{config.base_format}), which know their own shape. Take --quantization int8, or "
            "--parallel ddp."
        )
    choices.add("parallel", "fsdp2", f"of every block a share in each of {ranks} processes")
    return True


def loading_together(accelerator: Accelerator, sharded: bool) -> AbstractContextManager[None]:
    """Within the block a model that is to be sharded is made once a machine, not by each."""
    if not sharded:
        return nullcontext()
    return loaded_once(accelerator.process_index, accelerator.local_process_index)


def place(model: nn.Module, device: torch.device, sharded: bool) -> None:
    """Put a base on its device; of one that is to be sharded only what encodes pictures."""
    whole = [getattr(model, name, None) for name in ("vision_encoder", "perceiver")]
    for part in whole if sharded else [model]:
        if part is not None:
            part.to(device)


def spread(model: Any, device: torch.device, sharded: bool) -> Any:
    """The model on its device, whole or of each weight this process's share.

    Last of all that is done to it: shards can be neither wrapped nor exchanged.
    """
    if not sharded:
        return model.to(device)
    shard(model, device)
    return model


def shard(model: nn.Module, device: torch.device) -> None:
    """Spread the weights of a model over all processes, in place; each keeps its share on a device.

    A process copies its share out of the whole weights, wherever these are; only what trains is
    sent, from the first process, as DDP does: it may have been drawn. All are DTensors from then
    on, and so are gradients and moments.

    Args:
        model: what is tuned, with all that is added to the base; frozen or not, in any formats.
        device: that computes.
    """
    base: Any = getattr(model, "get_base_model", lambda: model)()
    # What a T5 returns beside its loss: nobody writes into it.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(device.type, (get_world_size(),))
    # Of int8 tables one tells a format and holds nothing.
    empty = {parameter for parameter in model.parameters() if not parameter.numel()}
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
        if parameter.requires_grad:
            drawn = parameter.data.to(device)
            broadcast(drawn, 0)
            parameter.data.copy_(drawn)
    # Also the root's are let go after a forward pass: no weight is ever held whole between passes,
    # where it could be saved or set. It costs a second gathering of the token tables.
    share_out = partial(fully_shard, mesh=mesh, reshard_after_forward=True, ignored_params=empty)
    for block in reversed(blocks_of(base)):
        share_out(block)
        # Called outside of the model's forward pass by `generate`.
        if isinstance(block, FlamingoLayer):
            register_fsdp_forward_method(block, "key_values")
    share_out(base)
    # The first module that computes would be taken for the root; pictures may be encoded alone.
    base._get_fsdp_state()._lazy_init()
    for part in _parts(base):
        # Gathered first here, and not in inference mode, whose tensors no training could use.
        part.unshard()
        part.reshard()


def blocks_of(base: nn.Module) -> list[nn.Module]:
    """What is gathered together: layers of any stack, a Perceiver, what is left of a tower.

    From the outside in: a module before those within it.
    """
    layers = (FlamingoLayer, GradientCheckpointingLayer)
    stacks = (module for module in base.modules() if isinstance(module, nn.ModuleList))
    inner = {id(child) for stack in stacks for child in stack if isinstance(child, layers)}
    inner |= {id(getattr(base, name, None)) for name in ("vision_encoder", "perceiver")}
    chosen = (module for module in base.modules() if id(module) in inner)
    return [module for module in chosen if any(True for _ in module.parameters())]


@contextmanager
def gathered(model: nn.Module, blocks: bool = True) -> Iterator[None]:
    """Within the block each process holds weights whole, for work outside of the forward pass.

    Args:
        model: sharded.
        blocks: all weights, so that a process computes without the others; else those outside of
            blocks alone (token tables), and the processes must call the same modules in turn.
    """
    # The root is the first of them.
    parts = _parts(model) if blocks else _parts(model)[:1]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def fits_gathered(model: nn.Module, accelerator: Accelerator) -> bool:
    """Whether every process has the memory to hold the weights whole; all must ask."""
    shares = [p for p in model.parameters() if isinstance(p, DTensor)]
    missing = sum(p.numel() * p.itemsize - p.to_local().nbytes for p in shares)
    free = free_memory_bytes(accelerator.device)
    if accelerator.device.type == "cpu":
        # Those of one machine have its memory together.
        free //= int(os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes)
    lacking = torch.tensor(float(free < SPARE * missing), device=accelerator.device)
    total: Any = accelerator.reduce(lacking, "sum")
    return not total.item()


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]

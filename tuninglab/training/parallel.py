"""What several processes change: sums over them, weights that are sharded, work shared out.

Sharded weights (FSDP2) are DTensors: each process holds a part. Whoever saves needs them whole, and
whoever computes with them must do so on all processes at once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import Subset

Item, Result = TypeVar("Item"), TypeVar("Result")


def over_processes(value: Tensor, accelerator: Accelerator) -> Tensor:
    """The sum of a tensor over all processes, on each of them."""
    summed: Any = accelerator.reduce(value, "sum")
    return summed


def is_sharded(model: nn.Module) -> bool:
    """Whether some weights of a model are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, those of shards put together: all processes must ask, in one order."""
    return {name: _whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter, or this process's part of it where it is sharded."""
    if isinstance(parameter, DTensor):
        mesh, places = parameter.device_mesh, parameter.placements
        value = distribute_tensor(value.to(parameter.device), mesh, places)
    parameter.copy_(value)


def shared_out(
    work: Callable[[Sequence[Item]], list[Result]], model: nn.Module, accelerator: Accelerator
) -> Callable[[Sequence[Item]], list[Result]]:
    """Do work on many items on all processes, so that none waits in a collective for another.

    Each process takes every n-th item and all get all results, in the order of the items. With
    sharded weights each does everything: a forward pass there needs all processes, and they must
    take equally many.

    Args:
        work: from items, indexable and perhaps lazy, to as many results.
        model: what it computes with.
        accelerator: knows the processes.
    """
    ranks, rank = accelerator.num_processes, accelerator.process_index
    if ranks == 1 or is_sharded(model):
        return work

    def share(items: Sequence[Item]) -> list[Result]:
        mine: Any = Subset(items, range(rank, len(items), ranks))  # pyright: ignore
        parts = gather_object([work(mine) if len(mine) else []])
        # Item i lies in the part of process i % ranks, at place i // ranks.
        return [parts[number % ranks][number // ranks] for number in range(len(items))]

    return share

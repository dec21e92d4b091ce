"""What several processes change: sums over them, and work shared out.

What sharded weights change beside that is in models/weights.py: adapters are saved from them too.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Subset

from tuninglab.models.weights import is_sharded

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_processes(value: Tensor, accelerator: Accelerator) -> Tensor:
    """The sum of a tensor over all processes, on each of them."""
    summed: Any = accelerator.reduce(value, "sum")
    return summed


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

"""What several processes change: sums over them, and work shared out.

What sharded weights change beside that is in models/weights.py: adapters are saved from them too.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Subset

from tuninglab.console import say
from tuninglab.errors import WorkError
from tuninglab.models.weights import is_sharded
from tuninglab.training.sharding import fits_gathered, gathered

# What gloo and NCCL say where the other end of a connection is gone.
LOST = re.compile(
    r"gloo.*(clos|reset|Broken pipe|[Tt]imed out|refused)|NCCL.*(remote|aborted|peer)", re.DOTALL
)

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_processes(value: Tensor, accelerator: Accelerator) -> Tensor:
    """The sum of a tensor over all processes, on each of them."""
    summed: Any = accelerator.reduce(value, "sum")
    return summed


@contextmanager
def lost_processes_told() -> Iterator[None]:
    """Say of an exchange that failed that another process is gone: that one tells why, if it can.

    Raises:
        WorkError: another process has ended.
    """
    try:
        yield
    # gloo has no class for it, NCCL's is one of these.
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        raise WorkError(
            "Another process of this run has ended, and none can go on without it. Its own message "
            "says why; without one, the system killed it, as where memory runs out. What was saved "
            "is whole: --resume goes on from there."
        ) from error


def shared_out(
    work: Callable[[Sequence[Item]], list[Result]], model: nn.Module, accelerator: Accelerator
) -> Callable[[Sequence[Item]], list[Result]]:
    """Do work on many items on all processes, so that none waits in a collective for another.

    Each process takes every n-th item and all get all results, in the order of the items. Sharded
    weights are gathered for it. Where they do not fit into a process, each does everything, all in
    step: a forward pass then needs all processes, and how many one makes depends on its items.

    Args:
        work: from items, indexable and perhaps lazy, to as many results.
        model: what it computes with.
        accelerator: knows the processes.
    """
    ranks, rank = accelerator.num_processes, accelerator.process_index
    if ranks == 1:
        return work

    def share(items: Sequence[Item]) -> list[Result]:
        mine: Any = Subset(items, range(rank, len(items), ranks))  # pyright: ignore
        parts = gather_object([work(mine) if len(mine) else []])
        # Item i lies in the part of process i % ranks, at place i // ranks.
        return [parts[number % ranks][number // ranks] for number in range(len(items))]

    def spread(items: Sequence[Item]) -> list[Result]:
        if not is_sharded(model):
            return share(items)
        whole = fits_gathered(model, accelerator)
        if not whole:
            say("The weights do not fit whole into a process: all answer every question, in step.")
        with gathered(model, blocks=whole):
            return share(items) if whole else work(items)

    return spread


def carried(
    model: nn.Module, optimizer: Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, Optimizer]:
    """What computes, under autocast and over processes, and what steps."""
    if not is_sharded(model):
        return accelerator.prepare(model, optimizer)
    # Shards exchange gradients by themselves; what accelerate does to a model besides DDP is all
    # that it does to one in evaluation.
    wrapped = accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
    return wrapped, accelerator.prepare_optimizer(optimizer, device_placement=False)

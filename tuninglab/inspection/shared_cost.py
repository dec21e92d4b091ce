"""What a step costs each of several processes: gradients exchanged (DDP), weights shared (FSDP2).

Bytes sent are those of ring algorithms: of S bytes an all-reduce sends 2 S (n - 1) / n, an
all-gather or a reduce-scatter half of that (Thakur et al. 2005, Optimization of Collective
Communication Operations in MPICH).
"""

from dataclasses import replace
from typing import Any, Literal

from peft import PeftModel
from torch import nn

from tuninglab.inspection.cost import Cost
from tuninglab.models.weights import bytes_held
from tuninglab.training.sharding import blocks_of

Parallel = Literal["ddp", "fsdp2"]
# Held as many times as there are processes, whatever is shared.
WHOLE = ("process", "workspace")
# Of a step's: in shares as the weights that they belong to.
SHARED = ("gradients", "AdamW")
# In the order in which a picture goes through them.
ENCODERS = ("vision_encoder", "perceiver")
# Gathered at a time: the block that computes and the one that comes next.
BLOCKS_AT_A_TIME = 2


def shared(
    cost: Cost,
    model: nn.Module,
    parallel: Parallel,
    processes: int,
    passes: int = 1,
    backward: bool = True,
) -> Cost:
    """A step's cost on each process, from that of one process with the same batch.

    Args:
        cost: of one process.
        model: PEFT's, whose blocks are gathered one by one.
        parallel: `ddp`: each holds all and exchanges gradients; `fsdp2`: each holds its share.
        processes: how many.
        passes: forward passes a step.
        backward: False: of a forward pass without gradients.
    """
    trained = bytes_held(p for p in model.parameters() if p.requires_grad) if backward else 0
    ring = (processes - 1) / processes
    if parallel == "ddp":
        # DDP keeps a copy of the gradients, in the buckets that it sends.
        step = {**cost.step, "gradient buckets": trained} if backward else cost.step
        return replace(cost, step=step, sent=int(2 * trained * ring))
    blocks = _gathered(model)
    root = bytes_held(model.parameters()) - sum(size for size, _ in blocks)
    at_a_time = sum(sorted(size for size, _ in blocks)[-BLOCKS_AT_A_TIME:])
    held = {n: v if n in WHOLE else -(-v // processes) for n, v in cost.held.items()}
    step = {n: -(-v // processes) if n in SHARED else v for n, v in cost.step.items()}
    step["gathered weights"] = root + at_a_time
    # Before the forward pass, and once more before the backward pass of what has one. Gradients are
    # scattered in every pass: accelerate cannot let shards wait for the last.
    twice = root + sum(size for size, again in blocks if again)
    received = root + sum(size for size, _ in blocks) + (twice if backward else 0)
    return replace(cost, held=held, step=step, sent=int(passes * ring * (received + trained)))


def _gathered(model: Any) -> list[tuple[int, bool]]:
    """Bytes of each block that is sharded apart, and whether a backward pass goes through it.

    None goes through what encodes pictures, up to the first part of it that trains.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    frozen = set()
    for name in ENCODERS:
        part = getattr(base, name, None)
        if part is None or any(p.requires_grad for p in part.parameters()):
            break
        frozen.update(map(id, part.modules()))
    # From the inside out: of a tower what is in none of its layers.
    seen, found = set(), []
    for block in reversed(blocks_of(base)):
        own = {id(p): p for p in block.parameters() if id(p) not in seen}
        seen |= own.keys()
        found.append((bytes_held(own.values()), id(block) not in frozen))
    return found

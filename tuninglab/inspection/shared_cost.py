"""What a step costs each of several processes: gradients exchanged (DDP), weights shared (FSDP2).

Bytes sent are those of ring algorithms: of S bytes an all-reduce sends 2 S (n - 1) / n, an
all-gather or a reduce-scatter half of that (Thakur et al. 2005, Optimization of Collective
Communication Operations in MPICH).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tuninglab.inspection.cost import Cost
from tuninglab.models.gated_cross_attention import FlamingoLayer
from tuninglab.models.weights import bytes_held

Parallel = Literal["ddp", "fsdp2"]
# Held as many times as there are processes, whatever is shared.
WHOLE = ("process", "workspace")
# Gathered at a time: the block that computes and the one that comes next.
BLOCKS_AT_A_TIME = 2


def shared(cost: Cost, model: nn.Module, parallel: Parallel, processes: int) -> Cost:
    """A step's cost on each process, from that of one process with the same batch.

    Args:
        cost: of one process.
        model: PEFT's, whose blocks are gathered one by one.
        parallel: `ddp`: each holds all and exchanges gradients; `fsdp2`: each holds its share.
        processes: how many.
    """
    trained = bytes_held(p for p in model.parameters() if p.requires_grad)
    ring = (processes - 1) / processes
    if parallel == "ddp":
        # DDP keeps a copy of the gradients, in the buckets that it sends.
        step = {**cost.step, "gradient buckets": trained}
        return replace(cost, step=step, sent=int(2 * trained * ring))
    weights = bytes_held(model.parameters())
    blocks = [bytes_held(block.parameters()) for block in _blocks(model)]
    # What is in no block is gathered with the first one and stays until the end of the step.
    rest = weights - sum(blocks)
    gathered = sum(sorted(blocks)[-BLOCKS_AT_A_TIME:]) + rest
    held = {n: v if n in WHOLE else -(-v // processes) for n, v in cost.held.items()}
    step = {**cost.step, "gathered weights": gathered}
    # Gathered before the forward and before the backward pass of a block, the rest once.
    sent = int(ring * (2 * sum(blocks) + rest + trained))
    return replace(cost, held=held, step=step, sent=sent)


def _blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The layers that are sharded apart: a Flamingo's, or the checkpointable ones of a T5."""
    for kind in (FlamingoLayer, GradientCheckpointingLayer):
        if layers := [module for module in model.modules() if isinstance(module, kind)]:
            return layers
    return []

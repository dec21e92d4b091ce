"""Activation checkpointing of every n-th block."""

import re
from functools import partial
from typing import Any

from peft import PeftModel
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_blocks(model: Any, every: int) -> int:
    """Let every n-th block of each stack compute its activations again in the backward pass.

    Blocks are transformers' checkpointable layers in the parts that train something: a frozen
    tower keeps nothing that could be computed again. The first of a stack is the first chosen; the
    gated blocks of a Flamingo are a stack of their own. Returns how many were chosen.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    stacks: dict[str, list[Any]] = {}
    for part in base.children():
        if not any(parameter.requires_grad for parameter in part.parameters()):
            continue
        for name, module in part.named_modules():
            if isinstance(module, GradientCheckpointingLayer):
                stack = f"{id(part)} {re.sub(r'[0-9]+', '*', name)}"
                stacks.setdefault(stack, []).append(module)
    chosen = [block for stack in stacks.values() for block in stack[::every]]
    for block in chosen:
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        block.gradient_checkpointing = True
    return len(chosen)

"""AdamW over what trains, in groups, and the learning-rate schedule."""

from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

# Share of all steps where --warmup_steps is not given.
WARMUP_SHARE = 0.03
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, gate_lr_multiplier: float = 1.0
) -> list[dict]:
    """Sort the trainable parameters into groups for AdamW, each with a `name`.

    In a Flamingo weight decay falls on the matrices of gated cross-attention blocks only, LoRA
    matrices in them included: the rule of OpenFlamingo 0.0.x and Multimodal-GPT. Gates, norms,
    biases, embeddings and LoRA in the language model do not decay. In a model without such blocks
    all LoRA matrices do.
    """
    gates, decayed, plain = [], [], []
    gated = any("gated_cross_attn_layer" in name for name, _ in model.named_parameters())
    part = "gated_cross_attn_layer" if gated else "lora_"
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith(("attn_gate", "ff_gate")):
            gates.append(parameter)
        elif part in name and parameter.ndim == 2:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    # Gates start near 0 and open too slowly at LoRA's rate: 0.02-0.04 after 100 steps at the
    # base rate, 0.08-0.18 at ten times it (measured on the embedded model).
    gate_rate = learning_rate * gate_lr_multiplier
    groups = [
        {"name": "plain", "params": plain, "lr": learning_rate, "weight_decay": 0.0},
        {"name": "decayed", "params": decayed, "lr": learning_rate, "weight_decay": weight_decay},
        {"name": "gates", "params": gates, "lr": gate_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, gate_lr_multiplier: float = 1.0
) -> AdamW:
    """Build AdamW with torch's betas and eps (as OpenFlamingo 2.0.1) over the trainable groups."""
    return AdamW(parameter_groups(model, learning_rate, weight_decay, gate_lr_multiplier))


def make_schedule(
    optimizer: AdamW, name: str, total_steps: int, warmup_steps: int | None = None
) -> LambdaLR:
    """Build a schedule of optimizer steps: `constant`, `linear` or `cosine` after linear warm-up.

    Linear and cosine reach 0 at `total_steps`; `warmup_steps` None takes 3 % of all steps.
    """
    if warmup_steps is None:
        warmup_steps = int(total_steps * WARMUP_SHARE)
    # One of these names is always a LambdaLR, which get_scheduler's type does not say.
    schedule: Any = get_scheduler(
        SCHEDULES[name], optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps
    )
    return schedule

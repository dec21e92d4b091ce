"""AdamW over what trains, in groups, and the learning-rate schedule."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from tuninglab.models.named_parts import GATED_BLOCK, GATES, part_namer

# Share of all steps where --warmup_steps is not given.
WARMUP_SHARE = 0.03
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    gate_lr_multiplier: float = 1.0,
    part_learning_rates: Mapping[str, float] | None = None,
) -> list[dict]:
    """Sort the trainable parameters into groups for AdamW, each with a `name`.

    Parts with a learning rate of their own have their own groups, called by the part; what of them
    decays, `<part> decayed`.

    In a Flamingo weight decay falls on the matrices of gated cross-attention blocks only, LoRA
    matrices in them included: the rule of OpenFlamingo 0.0.x and Multimodal-GPT. Gates, norms,
    biases, embeddings and LoRA in the language model do not decay. In a model without such blocks
    all LoRA matrices do.
    """
    # Gates start near 0 and open too slowly at LoRA's rate: 0.02-0.04 after 100 steps at the
    # base rate, 0.08-0.18 at ten times it (measured on the embedded model).
    rates = {"gates": learning_rate * gate_lr_multiplier, **(part_learning_rates or {})}
    part_of = part_namer(model) if part_learning_rates else None
    groups: dict[str, list] = {"plain": [], "decayed": [], "gates": []}
    gated = any(GATED_BLOCK in name for name, _ in model.named_parameters())
    decaying = GATED_BLOCK if gated else "lora_"
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "gates" if name.endswith(GATES) else part_of(name) if part_of else ""
        kind = "decayed" if decaying in name and parameter.ndim == 2 else "plain"
        if part in rates:
            kind = part if kind == "plain" else f"{part} decayed"
        groups.setdefault(kind, []).append(parameter)
    return [
        {
            "name": name,
            "params": parameters,
            "lr": rates.get(name.split()[0], learning_rate),
            "weight_decay": weight_decay if name.endswith("decayed") else 0.0,
        }
        for name, parameters in groups.items()
        if parameters
    ]


def make_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    gate_lr_multiplier: float = 1.0,
    part_learning_rates: Mapping[str, float] | None = None,
) -> AdamW:
    """Build AdamW with torch's betas and eps (as OpenFlamingo 2.0.1) over the trainable groups."""
    scales = (gate_lr_multiplier, part_learning_rates)
    return AdamW(parameter_groups(model, learning_rate, weight_decay, *scales))


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

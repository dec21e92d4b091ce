"""What all stages share: the learning rate over a stage, and one optimizer step."""

import math
import sys
import time
from collections.abc import Iterable

import torch


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * cosine)


def make_optimizer(modules: Iterable[tuple[torch.nn.Module, float]]) -> torch.optim.AdamW:
    """AdamW over (module, learning-rate multiplier); only matrices decay, gates go 10x.

    Vectors and gates do not decay. Adam moves a gate by at most the learning rate per step, so from
    0 a gate at the common rate hardly opens.
    """
    groups = []
    for module, scale in modules:
        gates = [p for n, p in module.named_parameters() if n.endswith("_gate")]
        rest = [p for n, p in module.named_parameters() if not n.endswith("_gate")]
        groups.append(
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.05, "scale": scale}
        )
        groups.append(
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0, "scale": scale}
        )
        if gates:
            groups.append({"params": gates, "weight_decay": 0.0, "scale": 10 * scale})
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)


def optimize(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    """Backward, clip to norm 1, step at `rate` times each group's multiplier."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    optimizer.step()


class Progress:
    """Prints a line every `every` steps with the seconds since the stage began."""

    def __init__(self, stage: str, steps: int, every: int = 200):
        self.stage, self.steps, self.every = stage, steps, every
        self.began_s = time.perf_counter()

    def __call__(self, step: int, **figures: float) -> None:
        """Print the figures of this step, if it is one to print."""
        if step % self.every == 0 or step == self.steps - 1:
            text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            spent_s = time.perf_counter() - self.began_s
            print(
                f"{self.stage} {step + 1}/{self.steps}  {text}  {spent_s:.0f} s",
                file=sys.stderr,
                flush=True,
            )

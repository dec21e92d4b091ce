"""Products in float32 through oneDNN: whether a model takes them, and its layers that then do."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from tuninglab.adapters.int8_lora import passes
from tuninglab.config.training import Products
from tuninglab.console import Choices
from tuninglab.kernels.few_rows import fits
from tuninglab.kernels.products import FastLinear, FrozenWithLora, faster, has_onednn, takes_onednn

TRIED = 3  # shapes of weights: those that most layers have
# Numbers of a weight below which a call costs more than its product: nothing to gain, and a choice
# between equals would fall now so, now so.
SMALL = 2**15


# Whether oneDNN wins, and what was found.
Vote = tuple[bool, str]


def alone(votes: list[Vote]) -> list[Vote]:
    """The votes of a process that has no others beside it."""
    return votes


def choose_products(
    asked: Products,
    model: nn.Module,
    dtype: torch.dtype,
    choices: Choices,
    gather: Callable[[list[Vote]], list[Vote]] = alone,
) -> Products:
    """Resolve `auto` into onednn or torch for a model on its device, with the reason.

    Args:
        asked: auto, or what was asked for or decided when the run was started.
        model: whose layers are tried.
        dtype: that it computes in; only float32 on CPUs has a choice.
        choices: where it is said.
        gather: votes of this process -> those of all. oneDNN must win on each, or all multiply as
            torch does: processes of one run would round otherwise.
    """
    linear = [m.weight for m in model.modules() if type(m) is nn.Linear]
    linear = [w for w in linear if w.is_cpu and w.dtype == torch.float32]
    large = Counter(tuple(weight.shape) for weight in linear if weight.numel() >= SMALL)
    if dtype != torch.float32 or not (large if asked == "auto" else linear):
        return "torch"
    if not has_onednn():
        wins, found = False, "this torch has no oneDNN product for them"
    elif asked == "auto":
        tried: list[Any] = [shape for shape, _ in large.most_common(TRIED)]
        wins, found = faster(tried)
    else:
        wins, found = asked == "onednn", "as asked for, or as the run was started"
    votes = gather([(wins, found)])
    if len(votes) > 1:
        # A loss is the reason for all; a win counts where nobody lost.
        wins, found = min(votes, key=lambda vote: vote[0])
        found += (
            f"; {'so in all' if wins else 'in one of'} {len(votes)} processes, which must agree"
        )
    choices.add("products in float32", "oneDNN" if wins else "torch's own", found)
    return "onednn" if wins else "torch"


def use_onednn(model: nn.Module) -> int:
    """Let frozen linear layers multiply through oneDNN, LoRA on them included; returns how many.

    In place and layer by layer; names, state dicts and what is printed stay as they are.
    """
    count = 0
    for module in model.modules():
        plain = type(module) is nn.Linear and not module.weight.requires_grad
        if plain or type(module) is LoraLinear and type(module.get_base_layer()) in LINEAR:
            kind: Any = FastLinear if plain else FastLoraLinear
            module.__class__ = kind
            count += 1
    return count


# A base layer comes after the LoRA around it, or before.
LINEAR = (nn.Linear, FastLinear)


class FastLoraLinear(LoraLinear):
    """PEFT's LoRA layer; plain LoRA on a frozen layer is one node, through oneDNN."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., K) -> (..., N); whatever is not plain LoRA goes PEFT's own way."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        plain = len(names) == 1 and not (self.disable_adapters or self.merged or args or kwargs)
        if not plain or self.lora_variant or self.lora_bias[names[0]]:
            return super().forward(x, *args, **kwargs)
        base: Any = self.get_base_layer()
        a: Any = self.lora_A[names[0]].weight
        b: Any = self.lora_B[names[0]].weight
        ready = base.bias is None or not base.bias.requires_grad
        ready = ready and type(base) in LINEAR and passes(self.lora_dropout[names[0]])
        # Few rows, as generation has them, are C's: in the base layer, which PEFT calls.
        if not ready or fits(x, base.weight) or not takes_onednn(x, base.weight, base.bias, a, b):
            return super().forward(x, *args, **kwargs)
        return FrozenWithLora.apply(x, base.weight, base.bias, a, b, self.scaling[names[0]])

    def _get_name(self) -> str:
        return "Linear"

"""LoRA on Int8Linear, as a layer of PEFT."""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from tuninglab.adapters.int8.linear import Int8Linear


class Int8LoraLinear(LoraLinear):
    """PEFT's LoRA layer whose base and LoRA are one pass where nothing stands between them."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., K) -> (..., N); whatever is not plain LoRA goes PEFT's own way."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        plain = len(names) == 1 and not (self.disable_adapters or self.merged or args or kwargs)
        if not plain or self.lora_variant or not _passes(self.lora_dropout[names[0]]):
            return super().forward(x, *args, **kwargs)
        base: Any = self.get_base_layer()
        a, b = self.lora_A[names[0]], self.lora_B[names[0]]
        return base.multiply(x, a.weight, b.weight, self.scaling[names[0]])


def _passes(dropout: nn.Module) -> bool:
    return isinstance(dropout, nn.Identity) or not dropout.training


def know_int8(config: LoraConfig) -> LoraConfig:
    """Tell a LoRA configuration which layer stands on Int8Linear; returns it."""
    config._register_custom_module({Int8Linear: Int8LoraLinear})
    return config

"""LoRA on Int8Linear, as a layer of PEFT."""

from typing import Any

from peft import LoraConfig
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from tuninglab.errors import UserError
from tuninglab.int8.linear import Int8Linear


class Int8LoraLinear(LoraLinear):
    """PEFT's LoRA layer whose base and LoRA are one pass where nothing stands between them."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., K) -> (..., N); whatever is not plain LoRA goes PEFT's own way."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        plain = len(names) == 1 and not (self.disable_adapters or self.merged or args or kwargs)
        base: Any = self.get_base_layer()
        # Not int8: the base was dequantised since.
        if not plain or self.lora_variant or not isinstance(base, Int8Linear):
            return super().forward(x, *args, **kwargs)
        if self.lora_bias[names[0]] or not passes(self.lora_dropout[names[0]]):
            return super().forward(x, *args, **kwargs)
        a: Any = self.lora_A[names[0]]
        b: Any = self.lora_B[names[0]]
        return base.multiply(x, a.weight, b.weight, self.scaling[names[0]])

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> Any:
        """Plain LoRA only.

        Raises:
            UserError: DoRA and its kin, PiSSA and the like read the weight as float numbers.
        """
        variant = super().resolve_lora_variant(config=config, **kwargs)
        if variant is not None or config.init_lora_weights not in (True, False, "gaussian"):
            raise UserError(
                "Only plain LoRA works on int8 weights; this LoRA configuration needs float ones. "
                "Load the base without int8, or leave out use_dora, init_lora_weights and the like"
            )
        return None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapter to a base that was made float again.

        Raises:
            UserError: the base is int8.
        """
        if isinstance(self.get_base_layer(), Int8Linear):
            raise UserError(
                "An adapter cannot be merged into int8 weights: the sum would have to be rounded "
                "anew. Put it on its base in 16 or 32 bits and merge there; or make this base "
                "float first, with the rounding it was tuned with: "
                "model.get_base_model().dequantize()"
            )
        super().merge(safe_merge, adapter_names)


def passes(dropout: nn.Module) -> bool:
    """Whether a dropout of PEFT's lets everything through as it is."""
    return isinstance(dropout, nn.Identity) or not dropout.training


def know_int8(lora: LoraConfig) -> LoraConfig:
    """Tell a LoRA configuration which layer stands on Int8Linear; returns it."""
    lora._register_custom_module({Int8Linear: Int8LoraLinear})
    return lora

"""int8 weights as a quantisation of transformers: made as a checkpoint is read, kept when saved.

`from_pretrained(..., quantization_config=Int8Config())` puts Int8Linear in the place of linear
layers before anything is read, and quantises each weight as soon as it is. Saved models come back
without rounding anew.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from tuninglab.errors import UserError
from tuninglab.int8.linear import Int8Linear
from tuninglab.int8.rows import frozen, quantise_rows

METHOD = "tuninglab-int8"
# Rows that are quantised at a time. All rows of a head of 32,000 x 4096 at once would take three
# float32 copies of it besides.
ROWS = 1024


class Int8Config(QuantizationConfigMixin):
    """Which linear layers of a model are int8; those tied to a token table never are.

    Args:
        skip: modules that stay as they are, with all in them: the start or end of a name, or a
            regular expression for its start, as in transformers' other configurations.
        head: also quantise the output layer.
        others: of a saved configuration; empty ones (`smoothed: []` of 2026) mean nothing.

    Raises:
        UserError: one of the others is set.
    """

    def __init__(
        self,
        skip: Sequence[str] = (),
        head: bool = False,
        quant_method: str = METHOD,
        **others: Any,
    ):
        unknown = {name: value for name, value in others.items() if value}
        if unknown:
            raise UserError(
                f"The int8 configuration holds {unknown}, which this version does not know: the "
                "weights would be read wrongly. Quantise the model anew from its float weights"
            )
        self.quant_method: Any = quant_method
        self.skip = list(skip)
        self.head = head

    def layers(self, model: PreTrainedModel) -> list[str]:
        """Names of the linear layers of a model that this covers and that are not yet int8."""
        tied = model.all_tied_weights_keys
        output = None if self.head else model.get_output_embeddings()
        return [
            name
            for name, module in model.named_modules()
            # Not subclasses: what another library made of a layer is not a plain product.
            if type(module) is nn.Linear
            and module is not output
            and f"{name}.weight" not in {*tied, *tied.values()}
            and should_convert_module(name, self.skip)
        ]


class _QuantiseWeight(ConversionOps):
    """transformers' step between reading a weight and putting it into the model."""

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        ((name, value),) = input_dict.items()
        return_freed_memory()
        q, scale = quantise_weight(value[0] if isinstance(value, list) else value)
        return {name: frozen(q), f"{name}_scale": frozen(scale)}


class Int8Quantiser(HfQuantizer):
    """Int8Linear in the place of linear layers while `from_pretrained` builds and fills a model."""

    quantization_config: Int8Config

    @property
    def quantized_element_size(self) -> float:
        """Bytes of an element of a quantised weight."""
        return 1

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        """Whether what a file holds under this name is to be quantised."""
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Int8Linear) and name == "weight"

    def get_quantize_ops(self) -> ConversionOps:
        """The step that quantises one weight."""
        return _QuantiseWeight()

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        for name in self.quantization_config.layers(model):
            old = model.get_submodule(name)
            new = Int8Linear(old.in_features, old.out_features, old.bias is not None, "meta")
            model.set_submodule(name, new)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for name, layer in int8_layers(model):
            given, shape = tuple(layer.weight.shape), (layer.out_features, layer.in_features)
            # transformers leaves the shape of what is quantised to the quantiser.
            if given != shape:
                raise ValueError(f"{name}.weight is {given}, not {shape} as config.json has it")
            # The loader makes every float tensor trainable.
            layer.requires_grad_(False)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[None, dict]:
        """Before a model is saved: what was made float since comes back as float."""
        config = self.quantization_config
        config.skip += config.layers(model)
        return None, {}

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        for name, layer in int8_layers(model):
            model.set_submodule(name, layer.to_linear(dtype or model.dtype))
        return model

    def is_serializable(self) -> bool:
        """Such a model can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on such a model can be trained."""
        return True


# Not as decorators: they would hide from type checkers what the classes are.
register_quantization_config(METHOD)(Int8Config)
register_quantizer(METHOD)(Int8Quantiser)


def mark_quantised(model: PreTrainedModel, quantiser: Any) -> None:
    """Let transformers and PEFT know of a model that its parts are quantised."""
    marked: Any = model
    marked.is_quantized = True
    marked.quantization_method = quantiser.quantization_config.quant_method
    marked.hf_quantizer = quantiser
    quantiser.postprocess_model(model)


def int8_layers(model: nn.Module) -> list[tuple[str, Int8Linear]]:
    """The int8 layers of a model with their names."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, Int8Linear)]


@torch.no_grad()
def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A float weight (N, K) -> int8 (N, K) and the float32 scales of its rows (N,).

    Equal to `quantise_rows`, but with little memory besides where that takes some.
    """
    q = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        q[rows], scale[rows] = quantise_rows(weight[rows])
    return q, scale


def return_freed_memory() -> None:
    """Let the system have what was freed, where the C library can be asked to (glibc).

    It keeps freed memory of up to 32 MiB apiece and does not always use it again: the peak of
    loading a model of 137 MiB was 182 MiB or 342 MiB from one try to the next.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""The layers of a LLaMA-like Flamingo as addresses that C reads, where every module is known."""

import ctypes
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuninglab.int8.linear import Int8Linear
from tuninglab.kernels.decoding import (
    Gated,
    Layer,
    Layers,
    Matrix,
    Norm,
    address,
    matrices_of,
)
from tuninglab.kernels.few_rows import is_few_rows
from tuninglab.kernels.products import PLAIN, FastLinear
from tuninglab.models.gated_cross_attention import FlamingoLayer, GatedCrossAttentionBlock


class UnknownError(Exception):
    """Something in a model is not known by what it computes; says what."""


class Packing:
    """Reads modules into structures for C.

    Attributes:
        held: tensors and structures whose addresses were given away.
        dtypes: number formats of the weights.
    """

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.dtypes: set[torch.dtype] = set()

    def layers(self, lang_encoder: PreTrainedModel) -> Layers:
        """All layers, with the addresses of this moment.

        Raises:
            UnknownError: a module or a setting is not known by what it computes.
        """
        config: Any = lang_encoder.config
        model: Any = lang_encoder.base_model
        # Where there is a window, layers may see less than the whole text.
        if config.hidden_act != "silu" or getattr(config, "sliding_window", None):
            raise UnknownError("it has another activation than SiLU, or a sliding window")
        for module in (lang_encoder, model, *model.layers.modules(), model.norm):
            _check_plain(module)
        layers = (Layer * len(model.layers))(*map(self._layer, model.layers))
        attention: Any = model.layers[0].decoder_layer.self_attn
        blocks = [layer.before.contents for layer in layers if layer.before]
        matrices = [matrix for part in (*layers, *blocks) for matrix in matrices_of(part)]
        self.held.append(layers)
        return Layers(
            layers,
            self._norm(model.norm),
            len(layers),
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            attention.head_dim,
            max(max(matrix.out, matrix.size) for matrix in matrices),
            max(matrix.rank for matrix in matrices),
            sum(matrix.out * matrix.size for matrix in matrices),
            attention.scaling,
        )

    def _layer(self, layer: FlamingoLayer) -> Layer:
        part: Any = layer.decoder_layer
        attention, mlp, block = part.self_attn, part.mlp, layer.gated_cross_attn_layer
        q_norm, k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        norms = (part.input_layernorm, q_norm, k_norm, part.post_attention_layernorm)
        ways = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        feed_forward = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        before = None if block is None else ctypes.pointer(self._gated(block))
        return Layer(before, *map(self._norm, norms), *map(self._matrix, (*ways, *feed_forward)))

    def _gated(self, block: GatedCrossAttentionBlock) -> Gated:
        attention, (norm, up, _, down) = block.attn, block.ff
        gates = (gate.tanh().item() for gate in (block.attn_gate, block.ff_gate))
        return Gated(
            self._norm(attention.norm),
            self._norm(norm),
            *map(self._matrix, (attention.to_q, attention.to_out, up, down)),
            *gates,
            attention.heads,
        )

    def _norm(self, module: Any) -> Norm:
        if module is None:
            return Norm()
        self._format(module.weight)
        bias, eps = getattr(module, "bias", None), getattr(module, "variance_epsilon", None)
        eps = module.eps if eps is None else eps
        return Norm(self._floats(module.weight), self._floats(bias), eps)

    def _matrix(self, module: Any) -> Matrix:
        """A linear layer, plain or int8, with the one adapter that is on."""
        lora = _active_lora(module) if isinstance(module, LoraLinear) else None
        base: Any = module.get_base_layer() if isinstance(module, LoraLinear) else module
        if type(base) not in (nn.Linear, FastLinear, Int8Linear):
            raise UnknownError(f"{type(base).__name__} is not among the layers that C knows")
        scale = base.weight_scale if isinstance(base, Int8Linear) else None
        for tensor in (base.weight, base.bias):
            if tensor is not None:
                self._format(tensor)
        self.held += [base.weight, base.bias, scale]
        a, b, factor = lora or (None, None, 0.0)
        return Matrix(
            address(base.weight),
            address(scale),
            address(base.bias),
            self._floats(a),
            self._floats(b),
            *base.weight.shape,
            0 if a is None else len(a),
            factor,
        )

    def _format(self, tensor: Tensor) -> None:
        if type(tensor) not in PLAIN or not readable(tensor, tensor.dtype):
            raise UnknownError("a weight is not a plain one on the CPU")
        self.dtypes.add(tensor.dtype)

    def _floats(self, tensor: Tensor | None) -> int | None:
        """Address of the same in float32: itself, or a copy of what is small."""
        if tensor is None:
            return None
        self.held.append(tensor.detach().float().contiguous())
        return address(self.held[-1])


def _active_lora(module: LoraLinear) -> tuple[Tensor, Tensor, float] | None:
    """A (R, K), B (N, R) and the factor of the adapter beside a layer; None where none is."""
    names = [name for name in module.active_adapters if name in module.lora_A]
    if module.disable_adapters and module.merged:
        raise UnknownError("an adapter is off, and merged still")
    if module.disable_adapters or module.merged or not names:
        return None
    name = names[0]
    if len(names) > 1 or module.lora_variant or module.lora_bias[name]:
        raise UnknownError("several adapters at once, or one that is not plain LoRA")
    a: Any = module.lora_A[name]
    b: Any = module.lora_B[name]
    return a.weight, b.weight, module.scaling[name]


def _check_plain(module: nn.Module) -> None:
    """Refuse what changes a module's result beside its weights."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    own = vars(module).get("forward")
    if hooks or not (own is None or isinstance(own, partial) and is_few_rows(own)):
        raise UnknownError(f"{type(module).__name__} has a hook or a forward of its own")
    if module.training:
        raise UnknownError("it is in training mode")


def readable(tensor: Tensor, dtype: torch.dtype, gaps: bool = False) -> bool:
    """Whether C may read a tensor."""
    return tensor.is_cpu and tensor.dtype is dtype and (gaps or tensor.is_contiguous())

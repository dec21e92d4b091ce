"""Decoding: one token a row through all layers of a LLaMA-like Flamingo in one call of C.

Between transformers' `generate` and the language model, and only where every module is known by
what it computes; whatever is not goes the usual way, layer by layer. Embeddings, the angles of the
positions and the output layer are asked of their own modules, whatever was put in their place.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from tuninglab.kernels import compiled
from tuninglab.kernels.decoding import Layers, Step, address, decode
from tuninglab.kernels.dispatch import SUFFIXES
from tuninglab.kernels.few_rows import MOST_ROWS
from tuninglab.models.packing import Packing, UnknownError, readable

# Their layers differ in biases and norms of queries and keys alone, which are read from them.
KNOWN = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
SPARE = 64  # places that a cache gets at a time


class _SpareLayer(DynamicLayer):
    """A layer of transformers' cache that grows into spare room, not by a copy for every token.

    `keys` and `values` are all that it holds, as in its parent: views of the first places of
    something longer. What others make of them (beams, cropping) finds no room and gets it anew.
    """

    longer: tuple[Tensor, Tensor] | None = None

    def grow(self) -> tuple[Tensor, Tensor]:
        """Add a place without contents; returns both tensors (rows, heads, room, head)."""
        now: Any = (self.keys, self.values)
        length = now[0].shape[2]
        if self.longer is None or not all(map(_begins, self.longer, now)):
            # A quarter more, so that a long text is not copied every few tokens.
            shape = (*now[0].shape[:2], length + max(SPARE, length // 4), now[0].shape[3])
            self.longer = (now[0].new_empty(shape), now[1].new_empty(shape))
            for longer, old in zip(self.longer, now, strict=True):
                longer[:, :, :length] = old
        self.keys, self.values = (longer[:, :, : length + 1] for longer in self.longer)
        return self.longer


def _begins(longer: Tensor, now: Tensor) -> bool:
    """Whether `now` is the first places of `longer`, which has one more."""
    same = longer.data_ptr() == now.data_ptr() and longer.stride() == now.stride()
    return same and len(longer) == len(now) and longer.shape[2] > now.shape[2]


@dataclass
class Decoder:
    """The layers of a language model as C reads them, for one `generate`: weights may move later.

    Attributes:
        lang_encoder: the language model.
        layers: addresses into its weights, and into the cache of the step that runs.
        held: tensors and structures that live as long as the addresses.
        dtype: of what goes from layer to layer.
        most_rows: that C computes faster.
    """

    lang_encoder: PreTrainedModel
    layers: Layers
    held: list[Any]
    dtype: torch.dtype
    most_rows: int

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Any,
        media_key_values: Tensor | None,
        text_time: Tensor | None,
        others: dict[str, Any],
    ) -> CausalLMOutputWithPast | None:
        """Logits (B, 1, V) of one token a row, and the cache, which takes its keys and values in.

        None where the step is another one than C computes; then nothing has changed.

        Args:
            input_ids: (B, 1).
            attention_mask: (B, T + 1), or None for all.
            position_ids: (B, 1).
            cache: of T tokens.
            media_key_values: (B, G, M, L, 2 * width) of the G gated blocks, or None.
            text_time: (B, 1), the number from 1 of the image that each row sees, 0 for none.
            others: whatever else the language model was asked for; C does nothing besides.
        """
        if any(value is not None and value is not False for value in others.values()):
            return None
        rows, count = input_ids.shape
        if count != 1 or rows > self.most_rows or not self._takes(cache, rows):
            return None
        length, media = cache.get_seq_length() + 1, media_key_values
        if position_ids is None or position_ids.shape != (rows, 1):
            return None
        if attention_mask is not None and attention_mask.shape != (rows, length):
            return None
        if media is not None and (text_time is None or not readable(media, self.dtype)):
            return None
        model: Any = self.lang_encoder.base_model
        x = model.embed_tokens(input_ids).contiguous()
        cos, sin = (angles.contiguous() for angles in model.rotary_emb(x, position_ids))
        if x.dtype is not self.dtype or cos.shape != (rows, 1, self.layers.head):
            return None
        mask = None if attention_mask is None else attention_mask.to(torch.bool).contiguous()
        image = None if text_time is None else (text_time.long() - 1).contiguous()
        sizes = (0, 0, 0) if media is None else media.shape[1:4]
        step: Any = Step(*map(address, (x, cos, sin, mask, media, image)), *sizes, rows, length)
        for layer, kept in zip(self.layers.layers[: self.layers.count], cache.layers, strict=True):
            kept.__class__ = _SpareLayer
            keys, values = kept.grow()
            layer.keys, layer.values, layer.room = address(keys), address(values), keys.shape[2]
        decode(self.layers, step, self.dtype)
        head: Any = self.lang_encoder.get_output_embeddings()
        return CausalLMOutputWithPast(logits=head(x), past_key_values=cache)

    def _takes(self, cache: Any, rows: int) -> bool:
        """Whether a cache is a plain one of so many rows, and C may run at all here."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if torch.is_autocast_enabled("cpu") or not isinstance(cache, DynamicCache):
            return False
        layers: Any = cache.layers
        if cache.offloading or len(layers) != self.layers.count:
            return False
        shape = (rows, self.layers.kv_heads, cache.get_seq_length(), self.layers.head)
        return shape[2] > 0 and all(
            type(layer) in (DynamicLayer, _SpareLayer)
            and layer.keys.shape == layer.values.shape == shape
            and readable(layer.keys, self.dtype, gaps=True)
            for layer in layers
        )


def decoder_of(lang_encoder: PreTrainedModel) -> tuple[Decoder | None, str]:
    """What decodes with a Flamingo's language model in C, and how; None and why there is none."""
    if compiled.library() is None:
        return None, "the kernels in C are not there"
    if type(lang_encoder) not in KNOWN:
        return None, f"{type(lang_encoder).__name__} is not among the models that C knows"
    packing = Packing()
    try:
        layers = packing.layers(lang_encoder)
    except UnknownError as error:
        return None, str(error)
    # Somebody else's module in the place of one of a known name.
    except AttributeError as error:
        return None, f"a layer is another one than expected: {error}"
    # Norms are never int8: there is one at least.
    dtype, *others = packing.dtypes - {torch.int8}
    if others or dtype not in SUFFIXES:
        return None, "the weights are not all in float32, or all in bfloat16"
    most_rows = min(MOST_ROWS[kind] for kind in packing.dtypes)
    return Decoder(lang_encoder, layers, packing.held, dtype, most_rows), "every layer is known"


def decoding_of(lang_encoder: PreTrainedModel) -> tuple[str, str]:
    """How `generate` computes a token with a Flamingo's language model here, and why."""
    decoder, reason = decoder_of(lang_encoder)
    if decoder is None:
        return "layer by layer", reason
    return "all layers in one call of C", f"{reason}; up to {decoder.most_rows} rows at a time"

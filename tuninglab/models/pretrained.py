"""What transformers needs to know to load, initialise, place and checkpoint a Flamingo."""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.gated_cross_attention import GatedCrossAttentionBlock
from tuninglab.models.hub import located
from tuninglab.models.perceiver import PerceiverResampler


def find_decoder_layers(lang_encoder: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers of a language model, whatever its architecture calls it.

    Raises:
        ValueError: there is not exactly one list of `num_hidden_layers` checkpointable layers.
    """
    count = lang_encoder.config.get_text_config(decoder=True).num_hidden_layers
    found = [
        module
        for module in lang_encoder.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in module)
    ]
    if len(found) != 1:
        raise ValueError(
            f"{type(lang_encoder).__name__} has {len(found)} lists of {count} decoder layers; "
            "expected exactly one. Give a plain decoder-only language model of transformers"
        )
    return found[0]


class FlamingoPreTrainedModel(PreTrainedModel):
    """Flags, loading, initialisation, and the tables of the language model."""

    lang_encoder: PreTrainedModel
    config_class = FlamingoConfig
    # transformers adds those of the tower and the language model.
    _no_split_modules = ["FlamingoLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; also of `embedded`, the model that ships with tuninglab."""
        where = located(pretrained_model_name_or_path)
        loaded = super().from_pretrained(where, *args, **kwargs)
        # The loader makes every weight trainable.
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.vision_encoder.requires_grad_(False)
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        """The token table of the language model."""
        return self.lang_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token table of the language model."""
        self.lang_encoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The head of the language model."""
        return self.lang_encoder.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the head of the language model."""
        self.lang_encoder.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.lang_encoder.get_decoder()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # torch's own defaults, which OpenFlamingo 2.0.1 leaves in place; transformers' functions
        # skip what a checkpoint has already filled.
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PerceiverResampler):
            init.normal_(module.latents)
        elif isinstance(module, GatedCrossAttentionBlock):
            init.zeros_(module.attn_gate)
            init.zeros_(module.ff_gate)

    def initialize_weights(self) -> None:
        """Initialise what no checkpoint filled, the gated blocks included."""
        super().initialize_weights()
        # transformers hands modules inside lang_encoder to the language model's _init_weights,
        # which does not know gates: from_pretrained without them left -3e21 there.
        for block in self.modules():
            if isinstance(block, GatedCrossAttentionBlock):
                block.apply(self._init_weights)

"""The configuration of a Flamingo: two backbones and what connects them."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from tuninglab.models.formats.layout import MEDIA_MODES
from tuninglab.models.towers import KNOWN, TOWERS

# Without arguments the configuration is OpenFlamingo-9B: LLaMA-7B with three tokens added
# (OpenFlamingo 2.0.1, factory.py) and the ViT-L/14 of CLIP, whose activation is QuickGELU.
LLAMA_7B = {"vocab_size": 32003}
CLIP_VIT_L_14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}

# The numbers of Perceiver and gated blocks.
BRIDGE = (
    *("perceiver_depth", "perceiver_latents", "perceiver_heads", "perceiver_dim_head"),
    *("cross_attn_heads", "cross_attn_dim_head", "ff_mult"),
)


@strict
class FlamingoConfig(PreTrainedConfig):
    """Configuration of `FlamingoForConditionalGeneration`; the defaults are OpenFlamingo-9B.

    Args:
        text_config: any decoder LM (configuration object or dict with `model_type`).
        vision_config: a vision tower of `models/towers.py` (configuration object or dict with
            `model_type`).
        cross_attn_every_n_layers: layer i (from 0) has a gated block if (i + 1) is a multiple.
        perceiver_depth, perceiver_latents, perceiver_heads, perceiver_dim_head: the resampler.
        cross_attn_heads, cross_attn_dim_head: the gated cross-attention blocks.
        ff_mult: inner width of the feed-forwards of both, as a multiple of their width.
        media_mode: which image a text token sees. "previous": the nearest before it
            (OpenFlamingo 2.0.1); "next-v1": the nearest after it, and none after the last one
            (OpenFlamingo 0.0.x and Multimodal-GPT without media placement augmentation).
        image_token_id: id of `<image>`.
        eoc_token_id: id of `<|endofchunk|>`.

    Raises:
        ValueError: a value outside its range; the message has the value and the range.
    """

    model_type = "flamingo"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig, model_type="clip_vision_model", init_kwargs=CLIP_VIT_L_14
        ),
        "text_config": SubConfigSpec(
            config_class=AutoConfig, model_type="llama", init_kwargs=LLAMA_7B
        ),
    }

    text_config: Any = None
    vision_config: Any = None
    cross_attn_every_n_layers: int = 4
    perceiver_depth: int = 6
    perceiver_latents: int = 64
    perceiver_heads: int = 8
    perceiver_dim_head: int = 64
    cross_attn_heads: int = 8
    cross_attn_dim_head: int = 64
    ff_mult: int = 4
    media_mode: str = "previous"
    image_token_id: int = 32001
    eoc_token_id: int = 32000
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # The base class resets the attention implementation of configurations it is given, and a
        # live model that shares one would fall from sdpa to eager without a word.
        kept = {
            name: getattr(getattr(self, name), "_attn_implementation", None)
            for name in self.sub_configs_defaults
        }
        super().__post_init__(**{"attn_implementation": kept, **kwargs})
        # The loader ties weights only if the outermost configuration says so.
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        self._check()

    def _check(self) -> None:
        for name in ("cross_attn_every_n_layers", *BRIDGE):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a whole number >= 1")
        if self.media_mode not in MEDIA_MODES:
            raise ValueError(f"media_mode is {self.media_mode!r}; give one of {MEDIA_MODES}")
        if self.vision_config.model_type not in TOWERS:
            raise ValueError(
                f"vision_config is of model type {self.vision_config.model_type!r}; {KNOWN}"
            )
        text = self.text_config.get_text_config(decoder=True)
        if self.cross_attn_every_n_layers > text.num_hidden_layers:
            raise ValueError(
                f"cross_attn_every_n_layers is {self.cross_attn_every_n_layers}, but the language "
                f"model has {text.num_hidden_layers} layers: no layer would see an image"
            )
        for name in ("image_token_id", "eoc_token_id"):
            if not 0 <= getattr(self, name) < text.vocab_size:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but the vocabulary of text_config has "
                    f"{text.vocab_size} rows; add the token, or give the id it has"
                )

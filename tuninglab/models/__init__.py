"""What a Flamingo is: configuration, layers, model, processor and builders; no training.

One alphabet for tensor shapes, in all of tuninglab:
    B batch rows · T text tokens · M media (images or clips) of a row · F frames of a medium ·
    P patches of a frame · L latents of a medium · D width · R rank of an adapter

Importing this package registers the Flamingo with the Auto classes of transformers.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from tuninglab.models.build import flamingo_from_parts, load_flamingo
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.processing import FlamingoProcessor

AutoConfig.register(FlamingoConfig.model_type, FlamingoConfig, exist_ok=True)
for _auto in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    _auto.register(FlamingoConfig, FlamingoForConditionalGeneration, exist_ok=True)
AutoProcessor.register(FlamingoConfig, FlamingoProcessor, exist_ok=True)

__all__ = [
    "FlamingoConfig",
    "FlamingoForConditionalGeneration",
    "FlamingoProcessor",
    "flamingo_from_parts",
    "load_flamingo",
]

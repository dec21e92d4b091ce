"""Generation with images: encoded once, and read by every step from the same keys and values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from tuninglab.models.conditioning import count_text_time, sees_image
from tuninglab.models.configuration import FlamingoConfig


class FlamingoGenerationMixin(GenerationMixin):
    """`generate` of transformers, for a Flamingo, which has what is declared here."""

    config: FlamingoConfig
    lang_encoder: PreTrainedModel
    generation_config: GenerationConfig
    encode_images: Callable[..., Tensor]
    encode_key_values: Callable[[Tensor], Tensor]
    check_marks: Callable[[Tensor, Tensor | None], None]

    def set_generation_defaults(self) -> None:
        """End at `<|endofchunk|>` and at what the language model ends with; take its pad id."""
        # Its sampling settings are left behind: they were chosen for text, and would make answers
        # random unasked.
        own = self.lang_encoder.generation_config
        text = self.config.text_config.get_text_config(decoder=True)
        ends = [self.config.eoc_token_id]
        for ids in (own.eos_token_id if own else None, text.eos_token_id):
            ends += ids if isinstance(ids, list) else [] if ids is None else [ids]
        self.generation_config.eos_token_id = list(dict.fromkeys(ends))
        self.generation_config.bos_token_id = text.bos_token_id
        pad = text.pad_token_id
        self.generation_config.pad_token_id = self.config.eoc_token_id if pad is None else pad

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of one step of `generate`."""
        inputs = super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids, next_sequence_length=next_sequence_length, **kwargs
        )
        # From the whole text so far, which transformers keeps: so caches, beams, left padding
        # and speculative steps need no state of ours.
        config = self.config
        text_time = count_text_time(input_ids, config.image_token_id, config.media_mode)
        inputs["text_time"] = text_time[:, -inputs["input_ids"].shape[1] :]
        return inputs

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Prompt and continuation (B, T + new), by transformers' `generate` and its options.

        Images are encoded once, and the keys and values of the gated blocks computed once an
        image. `<image>` is never generated: there would be no image to it.

        Raises:
            ValueError: a row has more marks than images.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is None:
            raise ValueError("generate got neither input_ids nor inputs; give the prompt's ids")
        images = pixel_values if image_features is None else image_features
        # Here and not in forward, which gets text_time and so no longer counts.
        self.check_marks(input_ids, images)
        if image_features is None and pixel_values is not None and pixel_values.shape[1]:
            config = self.config
            text_time = count_text_time(input_ids, config.image_token_id, config.media_mode)
            seen = sees_image(text_time, pixel_values.shape[1]).any(1)
            image_features = self.encode_images(pixel_values, seen)
        if image_features is not None:
            # Under this name, because generate drops pixel_values after the prompt, but keeps
            # other tensors and repeats their rows for beams and returned sequences.
            kwargs["media_key_values"] = self.encode_key_values(image_features)
        settings = generation_config or self.generation_config
        suppressed = kwargs.get("suppress_tokens") or settings.suppress_tokens or []
        kwargs["suppress_tokens"] = sorted({*suppressed, self.config.image_token_id})
        return super().generate(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids, generation_config=generation_config, **kwargs
        )

"""Generation with images: encoded once, and read by every step from the same keys and values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from tuninglab.kernels.few_rows import few_rows_in_c
from tuninglab.models.conditioning import count_text_time
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.decoding import decoder_of
from tuninglab.models.weights import is_sharded


def last_positions(count: int | Tensor, input_ids: Tensor) -> int | Tensor:
    """The last `count` positions of input_ids (B, T) as their indices (count,).

    The slice that transformers makes of an int leaves gaps between rows, and torch multiplies what
    has gaps by a frozen weight as a batch, with a copy of the weight for each row: 8 rows of 512
    numbers and a bf16 head of 32,003 tokens took 8.7 s, gathered by an index 2.7 ms (torch 2.13).
    No positions (0, which is all), all of them, and what is a tensor already are left as they are.
    """
    length = input_ids.shape[1]
    if isinstance(count, Tensor) or not 0 < count < length:
        return count
    return torch.arange(length - count, length, device=input_ids.device)


class FlamingoGenerationMixin(GenerationMixin):
    """`generate` of transformers, for a Flamingo, which has what is declared here."""

    config: FlamingoConfig
    lang_encoder: PreTrainedModel
    generation_config: GenerationConfig
    encode_seen: Callable[..., Tensor]
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

    def text_time(self, input_ids: Tensor, documents: Tensor | None = None) -> Tensor:
        """(B, T) ids -> (B, T) number of the image that each token sees, by this model's mode."""
        how = (self.config.image_token_id, self.config.media_mode, documents)
        return count_text_time(input_ids, *how)

    def key_values_of(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        image_features: Tensor | None,
        patch_features: Tensor | None = None,
    ) -> Tensor | None:
        """Keys and values (B, G, M, L, 2 * width) of a prompt's images; None without images.

        Raises:
            ValueError: a row has more marks than images.
        """
        images = first_given(image_features, patch_features, pixel_values)
        # Here and not in forward, which gets text_time and so no longer counts.
        self.check_marks(input_ids, images)
        if image_features is None and images is not None and images.shape[1]:
            text_time = self.text_time(input_ids)
            image_features = self.encode_seen(text_time, pixel_values, patch_features)
        return None if image_features is None else self.encode_key_values(image_features)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Inputs of one step of `generate`."""
        text, past = self.config.text_config, kwargs.get("past_key_values")
        first = getattr(text, "original_max_position_embeddings", None)
        # LongRoPE turns all positions otherwise once a text is longer, and the cache was made for
        # the shorter one: transformers' Phi3ForCausalLM begins anew as well.
        if first and past is not None and 0 < past.get_seq_length() <= first < input_ids.shape[1]:
            kwargs |= {"past_key_values": None, "next_sequence_length": None}
        inputs = super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids, **kwargs
        )
        # From the whole text so far, which transformers keeps: so caches, beams, left padding
        # and speculative steps need no state of ours.
        inputs["text_time"] = self.text_time(input_ids)[:, -inputs["input_ids"].shape[1] :]
        return inputs

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        patch_features: Tensor | None = None,
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
        key_values = self.key_values_of(input_ids, pixel_values, image_features, patch_features)
        if key_values is not None:
            # Under this name, because generate drops pixel_values after the prompt, but keeps
            # other tensors and repeats their rows for beams and returned sequences.
            kwargs["media_key_values"] = key_values
        settings = generation_config or self.generation_config
        suppressed = kwargs.get("suppress_tokens") or settings.suppress_tokens or []
        kwargs["suppress_tokens"] = sorted({*suppressed, self.config.image_token_id})
        # Anew for each call: weights may have been merged, moved or loaded since. Not beside an
        # assistant model, which gets copies of all arguments and has other weights.
        if kwargs.get("assistant_model") is None:
            kwargs["decoder"], _ = decoder_of(self.lang_encoder)
        # transformers lets processes with shards wait for each other's longest text; with whole
        # weights, as `gathered` makes them, they need not.
        kwargs.setdefault("synced_gpus", is_sharded(self))  # pyright: ignore[reportArgumentType]
        with few_rows_in_c(self.lang_encoder):
            return super().generate(  # pyright: ignore[reportAttributeAccessIssue]
                input_ids, generation_config=generation_config, **kwargs
            )


def ending_with(model: Any, token_id: int) -> dict[str, list[int]]:
    """What tells `generate` to stop at one more token; {} where it does already.

    Args:
        model: a Flamingo, or one wrapped by PEFT.
        token_id: of the token.
    """
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or ())
    return {} if token_id in ends else {"eos_token_id": [*ends, token_id]}


def first_given(*forms: Tensor | None) -> Tensor | None:
    """The first of the forms that images were given in; None without images."""
    return next((form for form in forms if form is not None), None)

"""A prompt is read: its tokens, its pictures, and what of it is known from the turn before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tuninglab.data.prompt import encode_prompt
from tuninglab.data.prompt_formats import Prompt
from tuninglab.data.tokens import special_id
from tuninglab.errors import UserError
from tuninglab.serving.kept import KeptLatents, KeptPrefixes
from tuninglab.serving.rows import Asked, Row
from tuninglab.serving.sampling import Chooser
from tuninglab.serving.streaming import GrowingAnswer

# Positions are turned by how long the longest text of a batch is: rows would change each other.
BY_LENGTH = ("longrope", "dynamic")
# Of an answer where a model has no longest text.
MOST_TOKENS = 2**14


@dataclass(frozen=True)
class ServedModel:
    """What a name that clients use stands for.

    Attributes:
        adapter: what is to be on; None: the base alone.
        prompt: how it is asked.
        eyes: name of the adapter whose tower or Perceiver it sees with; None: the base's.
    """

    adapter: str | None
    prompt: Prompt
    eyes: str | None = None


class Read(NamedTuple):
    """A row, the cache (1, heads, T, head) of its prompt, and logits (V,) of what follows."""

    row: Row
    cache: Cache
    logits: Tensor


class LongPromptError(UserError):
    """A prompt has more tokens than the model reads."""


class Reader:
    """Reads prompts for one base, whichever of its adapters is on.

    Attributes:
        plain: caches hold all tokens and nothing else, so that rows can be laid together, and
            beginnings of dialogues kept.
        reason: why that is so.

    Args:
        model: the Flamingo itself, whatever is around it.
        processor: its processor.
        served: by name.
        latents: of pictures.
        prefixes: of dialogues.
        max_new_tokens: of an answer where the request says nothing.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        served: Mapping[str, ServedModel],
        latents: KeptLatents,
        prefixes: KeptPrefixes,
        max_new_tokens: int,
    ):
        self.model, self.processor, self.served = model, processor, served
        self.latents, self.prefixes, self.max_new_tokens = latents, prefixes, max_new_tokens
        self.text_config = model.config.text_config.get_text_config(decoder=True)
        # Beyond so many tokens LongRoPE turns all positions otherwise.
        self.first_length = getattr(self.text_config, "original_max_position_embeddings", None)
        self.plain, self.reason = self._kind_of_cache()

    def encode(self, asked: Asked) -> int:
        """Encode a request's prompt; returns how many tokens it may come to with its answer.

        Raises:
            UserError: the prompt is longer than the model reads, has no place for something in the
                dialogue, or there are more or fewer pictures than marks.
        """
        request, prompt = asked.request, self.served[asked.request.model].prompt
        if asked.ids is None:
            try:
                asked.ids = encode_prompt(request.messages, self.processor.tokenizer, prompt)
            except ValueError as error:
                raise UserError(f"This model was tuned otherwise: {error}") from error
            marks = asked.ids.count(self.model.config.image_token_id)
            if marks != len(request.pictures):
                raise UserError(f"{len(request.pictures)} pictures are given for {marks} marks")
        return len(asked.ids) + self._most(asked)

    @torch.inference_mode()
    def read(self, asked: Asked) -> Read:
        """Read the prompt of a request that was encoded.

        Raises:
            UserError: a picture cannot be read, or the model's own settings are wrong.
        """
        ids, request, served = asked.ids, asked.request, self.served[asked.request.model]
        assert ids is not None
        chooser = Chooser(self.model, request.sampling, len(ids))
        files = request.pictures
        latents, names = self.latents.of(
            self.model, self.processor.image_processor, files, served.eyes
        )
        media = None if latents is None else self.model.encode_key_values(latents)
        # One more, of the answer, which has no marks.
        row_ids = torch.tensor([[*ids, self.model.config.eoc_token_id]], device=self.model.device)
        times = self.model.text_time(row_ids)[0].tolist()
        # Numbers beyond the pictures are of none (see count_text_time).
        seen = [names[time - 1] if 0 < time <= len(names) else None for time in times]
        signature = list(zip(ids, seen, strict=False))
        known, cache = 0, self.new_cache()
        if self.plain:
            known, cache = self.prefixes.longest(request.model, signature)
        logits, cache = self.logits_of(row_ids[:, :-1], media, times[:-1], known, cache)
        if self.plain:
            layers: Any = cache.layers
            pairs = [(layer.keys, layer.values) for layer in layers]
            self.prefixes.keep(request.model, signature, pairs)
        tokenizer = self.processor.tokenizer
        answer = GrowingAnswer(tokenizer, served.prompt, (*request.stop, *chooser.stop))
        row = Row(
            asked,
            list(ids),
            signature,
            media,
            times[-1],
            seen[-1],
            chooser,
            answer,
            self._ends(served.prompt),
            self._most(asked),
            known,
        )
        return Read(row, cache, logits)

    def logits_of(
        self, ids: Tensor, media: Tensor | None, times: list[int], known: int, cache: Cache
    ) -> tuple[Tensor, Cache]:
        """Logits (V,) after ids (1, T), of which the cache has the first `known` already."""
        device = ids.device
        output = self.model(
            input_ids=ids[:, known:],
            attention_mask=torch.ones_like(ids),
            position_ids=torch.arange(known, ids.shape[1], device=device)[None],
            past_key_values=cache,
            use_cache=True,
            media_key_values=media,
            text_time=torch.tensor([times[known:]], device=device),
            logits_to_keep=1,
        )
        return output.logits[0, -1], output.past_key_values

    def reread(self, row: Row) -> tuple[Tensor, Cache]:
        """Logits (V,) after all tokens of a row, and a cache, both anew."""
        ids = torch.tensor([row.ids], device=self.model.device)
        times = self.model.text_time(ids)[0].tolist()
        return self.logits_of(ids, row.media, times, 0, self.new_cache())

    def new_cache(self) -> Cache:
        """An empty cache of the kind that the language model needs."""
        # Of all tokens also where a layer looks at the last ones only: rows of any length fit
        # together, at the price of memory.
        return DynamicCache() if self.plain else DynamicCache(config=self.text_config)

    def _kind_of_cache(self) -> tuple[bool, str]:
        layers = DynamicCache(config=self.text_config).layers
        strange = {type(layer) for layer in layers} - {DynamicLayer, DynamicSlidingWindowLayer}
        if strange:
            kinds = ", ".join(sorted(kind.__name__ for kind in strange))
            return False, f"the language model keeps more than keys and values ({kinds})"
        ropes = _rope_types(getattr(self.text_config, "rope_parameters", None))
        if wrong := ropes & set(BY_LENGTH):
            return False, f"positions depend on the longest text of a batch ({wrong.pop()})"
        return True, "keys and values of all tokens are kept"

    def _most(self, asked: Asked) -> int:
        """Tokens that the answer may have.

        Raises:
            LongPromptError: none.
        """
        wanted = asked.request.max_new_tokens or self.max_new_tokens
        longest = getattr(self.text_config, "max_position_embeddings", None)
        # Language models without learned or rotary limits (ALiBi) name none; memory has some.
        if longest is None:
            return min(wanted, MOST_TOKENS)
        tokens = len(asked.ids or ())
        if tokens >= longest:
            raise LongPromptError(
                f"With this question the conversation has {tokens} tokens; the model reads at most "
                f"{longest}. Start anew, or ask a shorter question."
            )
        return min(wanted, longest - tokens)

    def _ends(self, prompt: Prompt) -> frozenset[int]:
        end = special_id(prompt.end, self.processor.tokenizer)
        own: Any = self.model.generation_config.eos_token_id
        return frozenset({end, *([own] if isinstance(own, int) else own or ())})


def _rope_types(parameters: Any) -> set[str]:
    """All kinds of rotary positions in a configuration, which may have some for kinds of layers."""
    if not isinstance(parameters, Mapping):
        return set()
    inner = [_rope_types(value) for value in parameters.values()]
    own = parameters.get("rope_type")
    return set().union(*inner) | ({own} if isinstance(own, str) else set())

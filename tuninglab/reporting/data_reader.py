"""Who reads the data: the tokenizer of a model, without its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuninglab.config.prompts import TUNINGLAB, kept_prompt
from tuninglab.data.prompt import Counted, count_kinds, counting_key, dialogue_tokens, make_prompt
from tuninglab.data.prompt_formats import Prompt
from tuninglab.data.sample import Sample
from tuninglab.errors import UserError
from tuninglab.models.build import add_flamingo_tokens
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.hub import resolve
from tuninglab.models.parts import load_tokenizer, read_config
from tuninglab.run_folder.named_model import find_model, shipped


@dataclass(frozen=True)
class Reader:
    """A tokenizer, and how much its model can read.

    Args:
        name: of the model, as the user gave it.
        base: the Flamingo or language model that it is, or was tuned on.
        flamingo: whether the base is one; else it is a language model, to become one.
        tokenizer: of the model.
        longest: tokens of a record; None: no matter how many.
        prompt: how a dialogue becomes a text.
    """

    name: str
    base: str
    flamingo: bool
    tokenizer: Any
    longest: int | None
    prompt: Prompt

    @property
    def unknown(self) -> int | None:
        """The id of what the tokenizer does not know, where it has one for that alone."""
        index = self.tokenizer.unk_token_id
        other = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return None if index in other else index

    def tokens(self, sample: Sample) -> int:
        """The tokens of a whole dialogue."""
        return dialogue_tokens(sample, self.tokenizer, self.prompt)

    def counted(self, samples: Sequence[Sample]) -> list[Counted]:
        """The tokens of some dialogues, by kind."""
        return count_kinds(samples, self.tokenizer, self.prompt, self.unknown)

    @property
    def counting_key(self) -> str | None:
        """All that `counted` depends on beside the samples; None where that cannot be told."""
        key = counting_key(self.tokenizer, self.prompt)
        return None if key is None else f"{key} by kind {self.unknown}"


def open_reader(name: str, max_tokens: int | None = None, prompt: str = TUNINGLAB) -> Reader:
    """The tokenizer of a run folder, an adapter, a model directory, a hub id, or `embedded`.

    A plain language model is read with the tokens that a Flamingo adds to it.

    Args:
        name: the model.
        max_tokens: of a record, where that is less than the model can read.
        prompt: as --prompt names it.

    Raises:
        UserError: there is no such model, it is damaged, of a kind that finetune cannot take, or
            does not fit the prompt.
    """
    named = find_model(name)
    base = str(named.base)
    where, local = resolve(shipped(base), "model")
    config = read_config(where, local, "model")
    if config.is_encoder_decoder:
        kind = config.model_type
        raise UserError(
            f"--model {name} is a {kind!r}, which writes a text for a text; the dialogues of this "
            "verb are read by a Flamingo or a plain language model. Name one of these"
        )
    tokenizer = load_tokenizer(shipped(base))
    flamingo = isinstance(config, FlamingoConfig)
    text = config.text_config if isinstance(config, FlamingoConfig) else config
    if not flamingo:
        add_flamingo_tokens(tokenizer)
    limits = (max_tokens, getattr(text, "max_position_embeddings", None))
    longest = min((limit for limit in limits if limit), default=None)
    asked = make_prompt(kept_prompt(prompt), tokenizer)
    return Reader(name, base, flamingo, tokenizer, longest, asked)

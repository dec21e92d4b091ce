"""Who reads the data: the tokenizer of a model, without its weights."""

from dataclasses import dataclass
from typing import Any

from tuninglab.data.prompt import dialogue_tokens
from tuninglab.data.sample import Sample
from tuninglab.errors import UserError
from tuninglab.models.build import add_flamingo_tokens
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.hub import resolve
from tuninglab.models.parts import load_tokenizer, read_config
from tuninglab.named_model import find_model, shipped


@dataclass(frozen=True)
class Reader:
    """A tokenizer, and how much its model can read.

    Args:
        name: of the model, as the user gave it.
        base: the Flamingo or language model that it is, or was tuned on.
        flamingo: whether the base is one; else it is a language model, to become one.
        longest: tokens of a record; None: no matter how many.
    """

    name: str
    base: str
    flamingo: bool
    tokenizer: Any
    longest: int | None

    @property
    def unknown(self) -> int | None:
        """The id of what the tokenizer does not know, where it has one for that alone."""
        index = self.tokenizer.unk_token_id
        other = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return None if index in other else index

    def tokens(self, sample: Sample) -> int:
        """The tokens of a whole dialogue."""
        return dialogue_tokens(sample, self.tokenizer)


def open_reader(name: str, max_tokens: int | None = None) -> Reader:
    """The tokenizer of a run folder, an adapter, a model directory, a hub id, or `embedded`.

    A plain language model is read with the tokens that a Flamingo adds to it.

    Args:
        name: the model.
        max_tokens: of a record, where that is less than the model can read.

    Raises:
        UserError: there is no such model, it is damaged, or of a kind that finetune cannot take.
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
    return Reader(name, base, flamingo, tokenizer, longest)

"""What goes into the engine and what comes out: a request for an answer, and its events."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tuninglab.data.sample import Message


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; by itself the most probable one.

    Args:
        temperature: divides the logits; 0 takes the most probable token, whatever else is said of
            chance.
        top_p: of the most probable tokens as many as come to this probability together.
        top_k: at most so many tokens; 0: all.
        repetition_penalty: above 1 makes tokens less probable that stand in prompt or answer
            (Keskar et al. 2019, as transformers has it).
        frequency_penalty: taken off a token's logit for each time that the answer has it (OpenAI).
        presence_penalty: taken off once for a token that the answer has (OpenAI).
        seed: of what is drawn; the same request with the same seed has the same answer, whatever
            else is answered beside it. None: drawn anew.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Request:
    """A dialogue to be answered.

    Args:
        model: name of a served model.
        messages: of one form (`normal_messages`), the last from the user.
        pictures: the bytes of a picture file for each image part, in their order.
        max_new_tokens: longest answer; None: the engine's own.
        stop: texts that end the answer and are not part of it.
        sampling: how tokens are chosen.
        logprobs: so many most probable tokens are told beside each; None: nothing is told.
    """

    model: str
    messages: Sequence[Message]
    pictures: Sequence[bytes] = ()
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    logprobs: int | None = None


@dataclass(frozen=True)
class Candidate:
    """A token that could have come, its bytes, and its log-probability by the unchanged logits."""

    token: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class Token(Candidate):
    """A token of an answer, with the most probable ones in its place, the best first."""

    top: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Text:
    """A further bit of an answer; joined, they are the answer. `tokens`: if they were asked for."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Done:
    """The answer has ended.

    Attributes:
        reason: "stop" (its own end, or a text of `stop`), "length", or "cancelled".
        prompt_tokens: of the text; a picture is one.
        answer_tokens: that were generated, the one that ends it included.
        reused_tokens: of the prompt that were known from an earlier turn.
        first_token_s: from the request to its first token; None if there was none.
        total_s: from the request to here.
    """

    reason: str
    prompt_tokens: int
    answer_tokens: int
    reused_tokens: int = 0
    first_token_s: float | None = None
    total_s: float = 0.0


@dataclass(frozen=True)
class Failed:
    """There will be no (further) answer. A UserError is the client's mistake, others are ours."""

    error: Exception


Event: TypeAlias = Text | Done | Failed


class BusyError(Exception):
    """No more requests are taken now: as many wait as may.

    Args:
        retry_after_s: when it is worth to ask again, at a guess.
    """

    def __init__(self, retry_after_s: int):
        super().__init__(f"busy; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class ClosedError(Exception):
    """The engine is shutting down and takes no requests."""

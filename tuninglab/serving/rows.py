"""One answer under way: what it has come to, and what those who asked are told of it."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tuninglab.serving.exchange import Done, Event, Failed, Request, Text, Token
from tuninglab.serving.kept import Signature
from tuninglab.serving.sampling import Chooser, Vocabulary
from tuninglab.serving.streaming import GrowingAnswer


@dataclass
class Asked:
    """A request with those who wait for it.

    Attributes:
        request: the request.
        tell: takes an event of its answer.
        asked_s: when it came, by a monotonic clock.
        cancelled: nobody waits any more.
        ids: its prompt, once it was encoded.
    """

    request: Request
    tell: Callable[[Event], None]
    asked_s: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    ids: list[int] | None = None

    def fail(self, error: Exception) -> None:
        """Tell that there will be no answer."""
        self.tell(Failed(error))


class Answering:
    """Requests under way, for whoever gave them."""

    def __init__(self, asked: Sequence[Asked], changed: threading.Condition):
        self._asked, self._changed = asked, changed

    def cancel(self) -> None:
        """Free their places at the next token; from any thread, also after they have ended."""
        with self._changed:
            for one in self._asked:
                one.cancelled = True
            self._changed.notify_all()


class Row:
    """A dialogue that was read, and its answer as far as it has come.

    Args:
        asked: the request.
        ids: T of the prompt; tokens of the answer are added.
        signature: of the prompt's tokens.
        media: (1, G, M, L, 2 * width) keys and values of its pictures, or None.
        sees: number from 1 of the picture that its answer sees, 0 for none.
        seen: the name of that picture, or None.
        chooser: of its tokens.
        answer: its text.
        ends: ids that end it.
        most: tokens of the answer at most.
        reused_tokens: of the prompt that were known.
    """

    def __init__(
        self,
        asked: Asked,
        ids: list[int],
        signature: Signature,
        media: Tensor | None,
        sees: int,
        seen: str | None,
        chooser: Chooser,
        answer: GrowingAnswer,
        ends: frozenset[int],
        most: int,
        reused_tokens: int,
    ):
        self.asked, self.ids, self.media, self.sees, self.seen = asked, ids, media, sees, seen
        self.chooser, self.answer, self.ends, self.most = chooser, answer, ends, most
        self.prompt_signature, self.reused_tokens = signature, reused_tokens
        self.prompt_tokens = len(ids)
        self.tokens: list[Token] = []  # not told yet
        self.first_token_s: float | None = None
        self.ended = False

    @property
    def signature(self) -> Signature:
        """Of all tokens, prompt and answer."""
        answer = ((token, self.seen) for token in self.ids[self.prompt_tokens :])
        return [*self.prompt_signature, *answer]

    def take(self, logits: Tensor, vocabulary: Vocabulary) -> None:
        """Choose the next token by its logits (V,) and tell what it adds to the answer.

        What goes wrong with it is told as well, and ends this row alone.
        """
        try:
            self._take(logits, vocabulary)
        except Exception as error:
            self.ended = True
            self.asked.fail(error)

    def _take(self, logits: Tensor, vocabulary: Vocabulary) -> None:
        token = self.chooser.choose(self.ids, logits)
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.asked.asked_s
        self.ids.append(token)
        if token in self.ends:
            return self.end("stop")
        count = self.asked.request.logprobs
        if count is not None:
            self.tokens.append(vocabulary.told(token, logits, count))
        if text := self.answer.add(token):
            self._tell(text)
        if self.answer.stopped:
            self.end("stop")
        elif len(self.ids) - self.prompt_tokens >= self.most:
            self.end("length")

    def end(self, reason: str) -> None:
        """Tell what was held back, and that the answer is at its end."""
        rest = self.answer.end()
        if rest or self.tokens:
            self._tell(rest)
        self.ended = True
        answer_tokens = len(self.ids) - self.prompt_tokens
        total_s = time.monotonic() - self.asked.asked_s
        counts = (self.prompt_tokens, answer_tokens, self.reused_tokens)
        self.asked.tell(Done(reason, *counts, self.first_token_s, total_s))

    def _tell(self, text: str) -> None:
        self.asked.tell(Text(text, tuple(self.tokens)))
        self.tokens.clear()

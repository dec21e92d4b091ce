"""An answer as it grows: text for the screen from tokens that are still coming."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from tuninglab.data.prompt import decode_answer
from tuninglab.data.prompt_formats import TUNINGLAB, Prompt

# How LLaMA's vocabulary writes a byte of a character that it has no token for.
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
UNFINISHED = "\ufffd"  # what a tokenizer decodes the first bytes of a character to


class GrowingAnswer:
    """The text of one answer, bit by bit; joined, the bits are what `decode_answer` gives.

    transformers' TextStreamer decodes each line of an answer apart, which is another text with
    tokenizers that drop a leading blank, and shows end tokens and blanks that `decode_answer`
    leaves out.

    Attributes:
        stopped: a stop text has come; what follows is not part of the answer.

    Args:
        tokenizer: the model's tokenizer.
        prompt: the one in use, whose end token ends the answer.
        stop: texts that end the answer and are not part of it.
    """

    def __init__(self, tokenizer: Any, prompt: Prompt = TUNINGLAB, stop: Sequence[str] = ()):
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.stop = stop
        self.special = set(tokenizer.all_special_ids)
        self.ids: list[int] = []
        self.shown = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take the next token; returns what can be shown by now of what was not shown yet."""
        self.ids.append(token)
        # Decoded whole each time, because a token's text depends on those before it. It costs
        # 0.05 ms after 64 tokens and 0.3 ms after 512, little beside a step of the model.
        text = self._text(self._settled_ids()).rstrip(UNFINISHED)
        return self._more(text if self.stopped else text[: len(text) - self._held_back(text)])

    def end(self) -> str:
        """What was held back."""
        return self._more(self._text(self.ids))

    def _text(self, ids: Sequence[int]) -> str:
        text = decode_answer(ids, self.tokenizer, self.prompt, strip=False).lstrip()
        found = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        self.stopped = bool(found)
        return text[: min(found)] if found else text

    def _more(self, text: str) -> str:
        # Blanks at the end are not part of an answer, unless something follows them.
        more = text.rstrip()[len(self.shown) :]
        self.shown += more
        return more

    def _held_back(self, text: str) -> int:
        """Letters at the end of a text that may be the beginning of a stop text."""
        return max(
            (
                length
                for stop in self.stop
                for length in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:length])
            ),
            default=0,
        )

    def _settled_ids(self) -> list[int]:
        """The ids without byte tokens at the end: they are decoded together or not at all."""
        length = len(self.ids)
        while length and self._may_join(self.ids[length - 1]):
            length -= 1
        return self.ids[:length]

    def _may_join(self, index: int) -> bool:
        # Special tokens are left out of an answer, so bytes before and after one are neighbours.
        token = str(self.tokenizer.convert_ids_to_tokens(index))
        return index in self.special or BYTE_TOKEN.fullmatch(token) is not None


class AnswerStreamer(BaseStreamer):
    """Hands on the text of one answer bit by bit, for `generate(streamer=...)` with one row.

    Args:
        tokenizer: the model's tokenizer.
        on_text: is called with each new bit of text, never an empty one.
        prompt: the one in use, whose end token ends the answer.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], Any], prompt: Prompt = TUNINGLAB):
        self.answer = GrowingAnswer(tokenizer, prompt)
        self.on_text = on_text
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Take the prompt (B=1, T), which is not shown, and then tokens (1,) as they come."""
        if self.prompt_seen:
            for token in value.flatten().tolist():
                self._show(self.answer.add(token))
        self.prompt_seen = True

    def end(self) -> None:
        """Show what was held back."""
        self._show(self.answer.end())

    def _show(self, text: str) -> None:
        if text:
            self.on_text(text)

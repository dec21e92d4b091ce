"""An answer as it grows: text for the screen from tokens that are still coming."""

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from tuninglab.data.prompt import decode_answer
from tuninglab.data.prompt_formats import TUNINGLAB, Prompt

# How LLaMA's vocabulary writes a byte of a character that it has no token for.
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
UNFINISHED = "\ufffd"  # what a tokenizer decodes the first bytes of a character to


class AnswerStreamer(BaseStreamer):
    """Hands on the text of one answer piece by piece; joined, the pieces are the whole answer.

    For `generate(streamer=...)`, with one row. transformers' TextStreamer decodes each line of an
    answer apart, which is another text with tokenizers that drop a leading blank, and shows end
    tokens and blanks that `decode_answer` leaves out.

    Args:
        tokenizer: the model's tokenizer.
        on_text: is called with each new piece of text, never an empty one.
        prompt: the one in use, whose end token ends the answer.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], Any], prompt: Prompt = TUNINGLAB):
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.on_text = on_text
        self.special = set(tokenizer.all_special_ids)
        self.ids: list[int] = []
        self.shown = ""
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Take the prompt (B=1, T), which is not shown, and then tokens (1,) as they come."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        # Decoded whole each time, because a token's text depends on those before it. It costs
        # 0.05 ms after 64 tokens and 0.3 ms after 512, little beside a step of the model.
        settled = decode_answer(self._settled_ids(), self.tokenizer, self.prompt)
        self._show(settled.rstrip(UNFINISHED))

    def end(self) -> None:
        """Show what was held back."""
        self._show(decode_answer(self.ids, self.tokenizer, self.prompt))

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

    def _show(self, text: str) -> None:
        if len(text) > len(self.shown):
            self.on_text(text[len(self.shown) :])
            self.shown = text

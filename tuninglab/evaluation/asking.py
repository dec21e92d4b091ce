"""How a question becomes what a model reads, and what it wrote becomes an answer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tuninglab.data.prompt import encode_prompt, named
from tuninglab.data.sample import ImageSource
from tuninglab.evaluation.questions import Question


class Asking(ABC):
    """A way to ask: prompt, pictures, and how to read the answer.

    Nothing here depends on the other questions asked, their order, or how many processes ask.
    """

    @abstractmethod
    def ids(self, question: Question) -> list[int]:
        """The tokens of the whole prompt, up to where the answer starts."""

    def images(self, question: Question, own: Sequence[ImageSource]) -> list[ImageSource]:
        """The pictures of the prompt in the order of their marks.

        Args:
            question: that is asked.
            own: its pictures, or what stands in for them; those of examples come before.
        """
        return list(own)

    def said(self, text: str) -> str:
        """The answer that a generated text comes to."""
        return text

    def candidates(self, question: Question, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts as continuations of the prompt, to be ranked, each with its end."""
        raise NotImplementedError


class Dialogue(Asking):
    """As training had it: the dialogue up to its last question, by the processor's prompt."""

    def __init__(self, processor: Any):
        self.processor = processor

    def ids(self, question: Question) -> list[int]:
        """See `Asking`.

        Raises:
            UserError: the prompt has no place for something in the dialogue.
        """
        with named(question.sample):
            turns = question.sample.messages[:-1]
            return encode_prompt(turns, self.processor.tokenizer, self.processor.prompt)

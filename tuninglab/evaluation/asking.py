"""How a question becomes what a model reads, and what it wrote becomes an answer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tuninglab.data.prompt import answer_ids, encode_prompt, named
from tuninglab.data.sample import ImageSource, Message, Sample
from tuninglab.evaluation.questions import Question


class Asking(ABC):
    """A way to ask: prompt, pictures, and how to read the answer.

    Nothing here depends on the other questions asked, their order, or how many processes ask.

    Attributes:
        beams: of generation; None: as the settings say.
        length_penalty: of beams, as `generate` has it: the sum of log-probabilities is divided by
            the length to this power; None: its default.
    """

    beams: int | None = None
    length_penalty: float | None = None

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

    def turns(self, question: Question) -> list[Message]:
        """What is said before the answer.

        Raises:
            UserError: examples before the question do not go with it.
        """
        return question.sample.messages[:-1]

    def ids(self, question: Question) -> list[int]:
        """See `Asking`.

        Raises:
            UserError: the prompt has no place for something in the dialogue.
        """
        with named(question.sample):
            turns = self.turns(question)
            return encode_prompt(turns, self.processor.tokenizer, self.processor.prompt)

    def candidates(self, question: Question, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts as training would learn them, each with the prompt's end token.

        Raises:
            UserError: the prompt has no place for something in the dialogue.
        """
        # Pieces of a prompt are tokenized apart: an answer's tokens do not depend on the question.
        samples = [_answered(question.sample, text) for text in texts]
        return answer_ids(samples, self.processor.tokenizer, self.processor.prompt)


def _answered(sample: Sample, text: str) -> Sample:
    """The dialogue with another last answer, the only one that is learned."""
    said = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    turns = [
        turn | {"loss": False} if turn["role"] == "assistant" else turn
        for turn in sample.messages[:-1]
    ]
    return Sample.known(messages=[*turns, said], images=sample.images, origin=sample.origin)

"""Prompts by name: how each released model was asked, as spans and as a Jinja template."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tuninglab.data.prompt_jinja import CHAT_TEMPLATE, TURNS_TEMPLATE
from tuninglab.data.sample import Message, Part, content_parts
from tuninglab.data.special_tokens import EOC_TOKEN, IMAGE_TOKEN

INSTRUCTION = "### Instruction:\n"  # Multimodal-GPT's section names, without its preamble
RESPONSE = "### Response:\n"
BREAK = "\n\n"


class Span(NamedTuple):
    """A piece of a prompt, tokenized apart from the others.

    Attributes:
        kind: "text"; "answer", a text too; "image"; "token", a special token by its name;
            "literal", what a template wrote, in which special tokens may stand; or "ending", such
            a literal that begins with the end of an answer, after blanks at most.
        text: as it is written; of an image, the mark.
        learned: whether the loss falls on it; of an ending, up to the end token.
    """

    kind: str
    text: str
    learned: bool = False


class Prompt(ABC):
    """How a dialogue becomes a text. Plain data, so that worker processes get it.

    Attributes:
        choice: what settings and adapters keep of it: a name, or the text of a template.
        chat_template: Jinja that renders the same text.
        end: the special token that ends an answer, by its name.
        adds_bos: whether the tokenizer's first token is to be put in front.
        written: tokens that it writes, and no text becomes, whether the tokenizer calls them
            special or not.
    """

    choice: str
    chat_template: str
    end: str
    adds_bos: bool = True
    written: tuple[str, ...] = ()

    @abstractmethod
    def spans(self, messages: Sequence[Message], ask: bool = False) -> list[Span]:
        """The dialogue as pieces; with `ask`, up to where the next answer starts.

        Raises:
            ValueError: the prompt has no place for something in the dialogue.
        """

    def text(self, messages: Sequence[Message], ask: bool = False) -> str:
        """The dialogue as one text, without the tokenizer's first token if that is added."""
        return "".join(span.text for span in self.spans(messages, ask))


@dataclass(frozen=True)
class Sections(Prompt):
    """tuninglab's own: Multimodal-GPT's sections, pictures where they stand in the question."""

    choice: str = "tuninglab"
    chat_template: str = CHAT_TEMPLATE
    end: str = EOC_TOKEN

    def spans(self, messages: Sequence[Message], ask: bool = False) -> list[Span]:
        """See `Prompt`."""
        return [*self._spans(messages), *([Span("text", RESPONSE)] if ask else [])]

    def _spans(self, messages: Sequence[Message]) -> Iterator[Span]:
        for number, message in enumerate(messages, 1):
            role, parts = message["role"], content_parts(message["content"])
            # Exporters write an empty system message where there is none; it leaves no trace.
            if not parts:
                continue
            if role != "system":
                yield Span("text", INSTRUCTION if role == "user" else RESPONSE)
            yield from _said(message, parts)
            if role == "assistant":
                yield Span("token", self.end, is_learned(message))
            # What follows the last answer is never seen: generation stops at the end token.
            if role != "assistant" or number < len(messages):
                yield Span("text", BREAK)


@dataclass(frozen=True)
class Turns(Prompt):
    """Question and answer in words of their own; pictures that open a question stand before it.

    Args:
        choice: its name.
        question: stands before a question; None: there is no place for one.
        response: stands before an answer.
        start: stands before all.
        pictures: stands before the pictures that open a question.
        mark: follows `response`, as the special token that it is where the tokenizer has it.
        blank: begins each answer, and is learned with it.
        between: stands before each further question.
        has_system: whether a system message may stand first, on a line of its own.
        end: that of an answer.
        end_variable: how templates of transformers call it; None: by its name.
    """

    choice: str
    question: str | None
    response: str
    start: str = ""
    pictures: str = ""
    mark: str = ""
    blank: str = ""
    between: str = ""
    has_system: bool = False
    end: str = EOC_TOKEN
    end_variable: str | None = None

    @property
    def written(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The mark of an answer, if it has one."""
        return (self.mark,) if self.mark else ()

    @property
    def chat_template(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Jinja that renders the same text."""
        words = ("question", "response", "start", "pictures", "mark", "blank", "between")
        values = {name: json.dumps(getattr(self, name) or "") for name in words}
        values |= {"end": self.end_variable or json.dumps(self.end)}
        values |= {"has_system": json.dumps(self.has_system)}
        values |= {"has_question": json.dumps(self.question is not None)}
        lines = [f"{{%- set {name} = {value} %}}\n" for name, value in values.items()]
        return "".join(lines) + TURNS_TEMPLATE

    def spans(self, messages: Sequence[Message], ask: bool = False) -> list[Span]:
        """See `Prompt`."""
        return list(_joined(self._spans(messages, ask)))

    def _spans(self, messages: Sequence[Message], ask: bool) -> Iterator[Span]:
        yield Span("text", self.start)
        begun = False
        for number, message in enumerate(messages, 1):
            role, parts = message["role"], content_parts(message["content"])
            if role == "system" and parts:
                if not self.has_system:
                    raise ValueError(
                        f"--prompt {self.choice} has no place for a system message; take it out of "
                        "the dialogue, or choose --prompt tuninglab"
                    )
                yield from [*_said(message, parts), Span("text", "\n")]
            elif role == "user":
                yield Span("text", self.between if begun else "")
                yield from self._asked(message, parts, number)
            elif role == "assistant" and parts:
                yield from self._opened()
                yield Span("answer", self.blank, is_learned(message))
                yield from _said(message, parts)
                yield Span("token", self.end, is_learned(message))
            begun = begun or role != "system"
        if ask:
            yield from self._opened()

    def _opened(self) -> list[Span]:
        """What stands before an answer."""
        return [Span("text", self.response), Span("literal", self.mark)]

    def _asked(self, message: Message, parts: Sequence[Part], number: int) -> Iterator[Span]:
        """A question, its pictures first; blanks between two of them, and behind, go."""
        last, pictures = 0, 0
        for place, part in enumerate(parts, 1):
            if part["type"] == "image":
                last, pictures = place, pictures + 1
            elif part["text"].strip():
                break
        yield Span("text", self.pictures if pictures else "")
        yield from [Span("image", IMAGE_TOKEN)] * pictures
        said = list(_said(message, parts[last:]))
        while pictures and said and said[0].kind == "text":
            said[0] = Span("text", said[0].text.lstrip())
            if said[0].text:
                break
            said.pop(0)
        if self.question is not None:
            yield from [Span("text", self.question), *said]
        elif any(span.text.strip() for span in said):
            raise ValueError(
                f"message {number} (user) holds a text, and --prompt {self.choice} has no place "
                "for a question: its user messages hold a picture alone. Take the text out, or "
                "choose --prompt openflamingo-vqa"
            )


def is_learned(message: Message) -> bool:
    """Whether an answer is to be learned."""
    return message.get("loss") is not False


def _said(message: Message, parts: Sequence[Part]) -> Iterator[Span]:
    answer = message["role"] == "assistant"
    for part in parts:
        if part["type"] == "image":
            yield Span("image", IMAGE_TOKEN)
        else:
            kind = "answer" if answer else "text"
            yield Span(kind, part["text"], answer and is_learned(message))


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    """The spans without empty ones, neighbours that are texts of one kind as one.

    Released models were trained on texts that were tokenized whole: the fewer cuts, the nearer.
    """
    before: Span | None = None
    for span in spans:
        if not span.text:
            continue
        if before and before.kind == span.kind and span.kind in ("text", "answer"):
            before = span._replace(text=before.text + span.text)
            continue
        if before:
            yield before
        before = span
    if before:
        yield before


TUNINGLAB = Sections()
PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
MULTIMODAL_GPT = Turns(
    "multimodal_gpt",
    start=PREAMBLE,
    pictures=BREAK + "### Image:\n",
    question=BREAK + INSTRUCTION,
    response=BREAK + RESPONSE,
    end="</s>",
    end_variable="eos_token",
)
OTTER = Turns(
    "otter",
    question="User: ",
    response=" GPT:",
    mark="<answer>",
    blank=" ",
    has_system=True,
)
# As its evaluation asks; with examples before a question, each on a line of its own.
OPENFLAMINGO_VQA = Turns(
    "openflamingo-vqa", question="Question:", response=" Short answer:", between="\n"
)
# In pre-training a caption followed its picture at once; its evaluation asks for one.
OPENFLAMINGO_CAPTION = Turns(
    "openflamingo-caption", question=None, response="Output:", between="\n"
)
NAMED: dict[str, Sections | Turns] = {
    prompt.choice: prompt
    for prompt in (TUNINGLAB, MULTIMODAL_GPT, OTTER, OPENFLAMINGO_VQA, OPENFLAMINGO_CAPTION)
}

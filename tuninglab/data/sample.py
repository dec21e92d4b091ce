"""One record of training data, a dialogue and its pictures, whatever file it came from."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from PIL import Image

from tuninglab.data.special_tokens import IMAGE_TOKEN

MISSING = object()  # what an absent key holds: in a message it is told apart from null
# LLaVA and ShareGPT say human and gpt; some tools mix both vocabularies in one file.
ROLES = {"system": "system", "user": "user", "human": "user"}
ROLES |= {"assistant": "assistant", "gpt": "assistant"}


class StoredPicture(ABC):
    """A picture inside of a larger file; its bytes are read when they are asked for.

    What it is made of is plain, so that worker processes get it, whether forked or spawned.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call it: the file and its place in there."""

    @property
    def group(self) -> tuple[str, int] | None:
        """What has to be read with it, by file and number; None: nothing, any order costs the same.

        Whoever reads many pictures is quicker to finish with one group before the next.
        """
        return None

    @abstractmethod
    def read(self) -> bytes:
        """The bytes of the picture's file.

        Raises:
            UserError: the larger file has changed or cannot be read.
        """


ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | StoredPicture
Part: TypeAlias = dict[str, str]  # {"type": "image"} or {"type": "text", "text": ...}
# {"role": "user", "content": list of parts}, and "loss": False in an answer that is not learned.
Message: TypeAlias = dict[str, Any]


@dataclass
class Sample:
    """A dialogue of user and assistant turns (a system message may stand first) and its pictures.

    The messages are checked and brought to one form, so that whoever holds a Sample can rely on it.

    Args:
        messages: `{"role", "content"}` each, in Hugging Face's message format; a content that is a
            plain string may hold `<image>` marks, in a list of parts text is only text. An answer
            with `"loss": False` is read and not learned.
        images: one for each image part, in the order of the parts.
        origin: where it came from, for messages to people ("my.json, record 3").
        kind: the type of question, for scores by type.
        id: the data's own name of the record (question_id, id), for predictions.
        answers: all texts that are right for the last question, where the data has several.
        group: what the record belongs to besides its kind, for scores by group.
        options: what the last answer is chosen from, where the data says so.

    Raises:
        ValueError: what is wrong with the record and what to do, without naming the record.
    """

    messages: list[Message]
    images: list[ImageSource]
    origin: str = "sample"
    kind: str | None = None
    id: str | int | None = None
    answers: Sequence[str] = ()
    group: str | None = None
    options: Sequence[str] = ()

    @classmethod
    def known(cls, **fields: Any) -> "Sample":
        """A sample of fields that were checked before, such as those of one that was kept."""
        sample = object.__new__(cls)
        usual = {"kind": None, "id": None, "answers": (), "group": None, "options": ()}
        sample.__dict__.update(usual | fields)
        return sample

    def __post_init__(self):
        self.messages = normal_messages(self.messages)
        # One form, so that samples that say the same are equal.
        self.answers, self.options = tuple(self.answers), tuple(self.options)
        check_turns(self.messages)
        marks = count_images(self.messages)
        if marks != len(self.images):
            raise ValueError(
                f"{marks} {IMAGE_TOKEN} marks in the messages but {len(self.images)} images; put "
                "one mark where each picture belongs (in a text part the mark is plain text)"
            )


@dataclass(frozen=True)
class Pair:
    """A text to read and the text to write for it.

    Args:
        source: what the model reads.
        target: what it is to write.
        origin: where the pair came from, for messages to people ("my.jsonl, line 3").
        kind: the type of text, for scores by type.
    """

    source: str
    target: str
    origin: str = "pair"
    kind: str | None = None


def normal_messages(messages: Any) -> list[Message]:
    """Messages with every content as a list of image and text parts, empty texts left out.

    Raises:
        ValueError: a message is no object, its role is unknown or its content cannot be read.
    """
    normal = []
    for number, message in enumerate(checked_dialogue(messages), 1):
        if not isinstance(message, dict):
            raise ValueError(f"message {number} is {brief(message)}; expected an object")
        try:
            role = checked_role(message.get("role", MISSING))
            parts = content_parts(message.get("content", MISSING))
            unlearned = _is_unlearned(message.get("loss"), role)
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None
        normal.append({"role": role, "content": parts} | ({"loss": False} if unlearned else {}))
    return normal


def checked_dialogue(messages: Any) -> list[Any]:
    """The messages, if they are a list of some.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(messages, list) or not messages:
        what = "empty" if messages == [] else brief(messages)
        raise ValueError(
            f"the dialogue is {what}; expected a list of messages, a question and its answer"
        )
    return messages


def checked_role(role: Any) -> str:
    """A role by our name for it.

    Raises:
        ValueError: nobody is called so.
    """
    if not isinstance(role, str) or role not in ROLES:
        known = "system, user (or human), assistant (or gpt)"
        raise ValueError(f"the role is {brief(role)}; known: {known}")
    return ROLES[role]


def _is_unlearned(loss: Any, role: str) -> bool:
    """Whether a message says that its answer is not learned; of others this goes without saying."""
    if loss is not None and not isinstance(loss, bool):
        raise ValueError(f'"loss" is {brief(loss)}; expected true or false')
    if loss and role != "assistant":
        raise ValueError(f'"loss" is true, but this is a {role} message: only answers are learned')
    return loss is False and role == "assistant"


def content_parts(content: Any) -> list[Part]:
    """A message's content as parts: a string is cut at its `<image>` marks, a list is checked.

    Raises:
        ValueError: the content is neither, or a part is of an unknown type.
    """
    if isinstance(content, str):
        parts: list[Part] = []
        # Spaces and newlines beside a mark are kept: only what the file says is learned.
        for number, text in enumerate(content.split(IMAGE_TOKEN)):
            parts += [{"type": "image"}] if number else []
            parts += [{"type": "text", "text": checked_text(text)}] if text else []
        return parts
    if not isinstance(content, list):
        raise ValueError(f"the content is {brief(content)}; expected a text or a list of parts")
    return [part for raw in content if (part := _checked_part(raw)) is not None]


def _checked_part(raw: Any) -> Part | None:
    """One part without its extra keys; None for an empty text."""
    if not isinstance(raw, dict) or raw.get("type") not in ("image", "text"):
        kind = f"type {brief(raw.get('type', MISSING))}" if isinstance(raw, dict) else brief(raw)
        raise ValueError(
            f'a part is unknown ({kind}): write {{"type": "image"}} and list the file under '
            '"images", or {"type": "text", "text": ...}'
        )
    # Exporters add keys with null (a datasets table has all columns); readers took the path.
    if raw["type"] == "image":
        return {"type": "image"}
    text = raw.get("text", MISSING)
    if not isinstance(text, str):
        raise ValueError(f"the text of a part is {brief(text)}; expected a string")
    return {"type": "text", "text": checked_text(text)} if text else None


def checked_text(text: str) -> str:
    r"""The text itself, if it can be written as UTF-8 (JSON's "\ud800" cannot).

    Raises:
        ValueError: the text holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise ValueError(
            f"the text holds {half}, half of a surrogate pair and no character; write it in full"
        ) from None
    return text


def check_turns(messages: list[Message]) -> None:
    """Pass if user and assistant take turns, the assistant last, and every turn says something.

    Raises:
        ValueError: the first rule that is broken, with the number of the message in the file.
    """
    first = 1 if messages and messages[0]["role"] == "system" else 0
    turns = messages[first:]
    if not any(message["role"] == "assistant" for message in turns):
        raise ValueError("there is no answer; add an assistant message, it is what is learned")
    if not any(message["role"] == "assistant" and "loss" not in message for message in turns):
        raise ValueError('no answer is learned: all have "loss": false; drop the record')
    for index, message in enumerate(turns):
        number, role = first + index + 1, message["role"]
        if role == "system":
            raise ValueError(f"message {number} is a system message; it may only stand first")
        # Two user turns could be joined or answered apart: only the author of the data knows.
        if role != ("user", "assistant")[index % 2]:
            before = f"follows another {role} message" if index else "stands first"
            raise ValueError(
                f"message {number} ({role}) {before}; user and assistant take turns, the user "
                "first: join the two messages or add the one between them"
            )
        # An empty answer would teach to say nothing; the loss of a row without labels is 0 / 0.
        if role == "assistant" and not plain_text(message).strip():
            raise ValueError(f"message {number}: the answer is empty; write one or drop the turn")
        if role == "user" and not (plain_text(message).strip() or count_images([message])):
            raise ValueError(f"message {number}: the question is empty; write one or drop the turn")
    # Pictures are given, never generated: in an answer the mark would ask for a loss on it.
    for number, message in enumerate(messages, 1):
        if message["role"] != "user" and count_images([message]):
            raise ValueError(
                f"message {number} ({message['role']}) holds an {IMAGE_TOKEN} mark; pictures "
                'belong to user messages (as plain text: {"type": "text", "text": ...})'
            )
    if turns[-1]["role"] == "user":
        raise ValueError("the last user message has no answer; add one or drop the message")


def count_images(messages: list[Message]) -> int:
    """The number of image parts in the messages."""
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def plain_text(message: Message) -> str:
    """The text parts of a message joined, without its pictures."""
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def brief(value: Any, characters: int = 60) -> str:
    """A value of unknown origin, short and printable, as it stands in an error message."""
    if value is MISSING or value is None:
        return "null" if value is None else "missing"
    # A container may be huge or nested deeply enough to break repr: its type and size tell enough.
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**15:
        return "a huge number"
    # Control characters could move the cursor, lone surrogates could not be printed at all.
    shown = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return shown if len(shown) <= characters else f"{shown[: characters - 3]}..."


def reason(error: Exception) -> str:
    """Why the system refused a path, without the path, which the message around it names."""
    return getattr(error, "strerror", None) or str(error)

"""The door to lmms-eval: what its tasks ask, their messages as dialogues and their settings.

lmms-eval reads this module at every start, with any model, so it imports little.
`lmms_model` is what it opens, and needs it installed; nothing here does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from PIL import Image

from tuninglab.data.sample import Sample, brief
from tuninglab.errors import UserError

# Where a task sets none; lmms-eval's own model classes have the same.
MOST_NEW_TOKENS = 1024
# The answer to the question that is asked, which nobody reads.
UNREAD = {"role": "assistant", "content": [{"type": "text", "text": "?"}]}


def manifest() -> Any:
    """What the entry point `lmms_eval.models` hands to lmms-eval: the name, and the classes."""
    from lmms_eval.models.registry_v2 import (  # pyright: ignore[reportMissingImports]
        ModelManifest,
    )

    module = "tuninglab.evaluation.lmms_model"
    return ModelManifest("tuninglab", f"{module}.Simple", f"{module}.Chat")


@dataclass(frozen=True)
class Settings:
    """How the answers of a task are generated; questions with equal ones share batches.

    Args:
        max_new_tokens: longer answers are cut.
        until: texts at the first of which an answer ends.
        options: of `generate`, by name.
    """

    max_new_tokens: int = MOST_NEW_TOKENS
    until: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Settings":
        """The settings that a task's `generation_kwargs` come to; null is as if left out.

        Raises:
            UserError: one of them is unknown, or its value cannot be honoured.
        """
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in given.items():
            if name not in _KNOWN:
                raise UserError(
                    f"lmms-eval, generation_kwargs: {brief(name)} cannot be honoured; known are "
                    f"{', '.join(_KNOWN)}. Leave it out of the task"
                )
            fits, expected = _KNOWN[name]
            if not fits(value):
                raise UserError(
                    f"lmms-eval, generation_kwargs: {name} is {brief(value)}; expected {expected} "
                    f"(--gen_kwargs {name}=... sets it for a run)"
                )
        until = given.get("until", ())
        until = (until,) if isinstance(until, str) else tuple(until)
        options = {n: given[n] for n in ("num_beams", "repetition_penalty") if n in given}
        # Temperature 0 is greedy for all of lmms-eval's models, also where do_sample is true.
        heat = given.get("temperature", 1.0 if given.get("do_sample") else 0.0)
        if heat > 0 and given.get("do_sample", True):
            options |= {"do_sample": True, "temperature": float(heat)}
            options |= {name: given[name] for name in ("top_p", "top_k") if name in given}
        most = given.get("max_new_tokens", MOST_NEW_TOKENS)
        return cls(most, tuple(text for text in until if text), tuple(sorted(options.items())))

    def cut(self, answer: str) -> str:
        """An answer up to the first of the texts that end it."""
        return answer[: min((answer.find(t) for t in self.until if t in answer), default=None)]


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any, least: float, most: float = float("inf")) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _are_texts(value: Any) -> bool:
    several = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
    return isinstance(value, str) or several


# What is honoured of generation_kwargs: which values are, and how messages say so.
_KNOWN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (partial(_is_whole, least=1), "a whole number >= 1"),
    "until": (_are_texts, "a text, or a list of them"),
    "do_sample": (lambda value: isinstance(value, bool), "true or false"),
    "temperature": (partial(_is_number, least=0), "a number >= 0"),
    "top_p": (partial(_is_number, least=0, most=1), "a number from 0 to 1"),
    "top_k": (partial(_is_whole, least=0), "a whole number >= 0"),
    "num_beams": (partial(_is_whole, least=1), "a whole number >= 1"),
    "repetition_penalty": (partial(_is_number, least=1e-6), "a number above 0"),
    # A setting of LLaVA's: a tower here has one way to see a picture, and that is this one.
    "image_aspect_ratio": (lambda value: value == "original", "original"),
}


class Asked(NamedTuple):
    """A question of a task.

    Args:
        messages: makes the dialogue, in lmms-eval's form; when it is asked, for its pictures.
        origin: the task and the number of the record, for messages to people.
        length: of the context in characters: questions of like length are answered together.
        settings: how the answer is generated.
        continuation: the answer whose probability is wanted, instead of one that is generated.
    """

    messages: Callable[[], Any]
    origin: str
    length: int = 0
    settings: Settings = Settings()
    continuation: str = ""

    def sample(self) -> Sample:
        """The dialogue with its pictures; its last turn stands for the answer.

        Raises:
            UserError: it holds a video or sound, or is no dialogue that ends with a question.
        """
        try:
            return _dialogue(self.messages(), self.origin)
        except ValueError as error:
            raise UserError(f"lmms-eval, {self.origin}: {error}") from error


def user_turn(pictures: Sequence[Any] | None, text: str) -> list[dict[str, Any]]:
    """A question about pictures, which stand before it, as lmms-eval's messages have it."""
    shown = [{"type": "image", "url": picture} for picture in pictures or ()]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def _dialogue(messages: Any, origin: str) -> Sample:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError(f"doc_to_messages gave {brief(messages)}; expected a list of messages")
    pictures: list[Any] = []
    turns = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = [_part(part, pictures) for part in content]
        turns.append({"role": message.get("role"), "content": content})
    return Sample([*turns, UNREAD], pictures, origin)


def _part(part: Any, pictures: list[Any]) -> Any:
    """A part of a message as a `Sample` has it; its picture goes to `pictures`."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"type": "text", "text": part.get("text")}
    if kind != "image":
        raise ValueError(
            f"a message holds {brief(kind)}; a Flamingo here reads text and pictures, no video "
            "and no sound: choose another task"
        )
    picture = part.get("url")
    if not isinstance(picture, str | bytes | Image.Image):
        raise ValueError(
            f"a picture is {type(picture).__name__}; expected a PIL image, a path or a file's bytes"
        )
    pictures.append(picture)
    return {"type": "image"}

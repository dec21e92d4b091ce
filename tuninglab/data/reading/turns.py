"""Turns of a dialogue as other tools write them, brought to messages and pictures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tuninglab.data.reading.picture_values import anthropic_source, decoded, picture_value
from tuninglab.data.sample import (
    MISSING,
    ImageSource,
    Message,
    Part,
    brief,
    checked_dialogue,
    checked_role,
    content_parts,
)

ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
OTHER_ROLES = {"bot": "assistant", "developer": "system"}
TOOL_ROLES = {"tool", "tool_call", "tool_response", "function", "function_call", "observation"}
# Of a turn: learned or not. OpenAI's weight is 0 or 1, ms-swift's loss_scale any number.
LEARNED_KEYS = ("loss", "loss_scale", "weight", "train")
# Each would change what a turn says, so none may be left out unsaid.
UNREAD_IN_TURNS = ("tool_calls", "function_call", "tool_call_id", "reasoning_content", "reasoning")
UNREAD_IN_TURNS += ("thinking", "refusal", "images", "image", "videos", "video", "audios", "audio")
TEXT_TYPES = {"text", "input_text", "output_text"}
IMAGE_TYPES = {"image", "image_url", "input_image"}
UNREAD_TYPES = {"tool_use", "tool_result", "server_tool_use", "document", "thinking", "refusal"}
UNREAD_TYPES |= {"redacted_thinking", "reasoning", "file", "input_file", "audio", "input_audio"}
UNREAD_TYPES |= {"audio_url", "video", "video_url", "input_video"}
PICTURE_KEYS = ("image", "path", "url", "base64", "image_url", "source")  # of an image part
REMEDY = "drop it if the rest makes sense without it, else drop the record"


@dataclass
class Turns:
    """What stands in a list of turns.

    Args:
        messages: `{"role", "content"}` each; contents are checked where they are lists, texts are
            still as they stand. `"loss": False` in an answer that is not learned.
        pictures: one for each image part of a list, None where it names none.
    """

    messages: list[Message]
    pictures: list[ImageSource | None]


def read_turns(turns: Any) -> Turns:
    """Turns of LLaVA, ShareGPT, ms-swift, OpenAI, Anthropic or Hugging Face.

    Raises:
        ValueError: what is wrong with the first turn that cannot be read, with its number.
    """
    read = Turns([], [])
    for number, turn in enumerate(checked_dialogue(turns), 1):
        if not isinstance(turn, dict):
            raise ValueError(f"message {number} is {brief(turn)}; expected an object")
        try:
            for message in _split_pair(turn):
                read.messages.append(_message(message, read.pictures))
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None
    return read


def joined(messages: Iterable[Message]) -> list[Message]:
    r"""Messages with neighbours of one role made one, their contents joined with "\n".

    Raises:
        ValueError: of two answers that would be joined, one is learned and the other is not.
    """
    result: list[Message] = []
    for message in messages:
        if not result or result[-1]["role"] != message["role"]:
            result.append(message)
            continue
        before = result[-1]
        if before.get("loss") != message.get("loss"):
            raise ValueError(
                "of two answers in a row one is learned and the other is not; join them or add the "
                "question between them"
            )
        result[-1] = before | {"content": _lines(before["content"], message["content"])}
    return result


def first_of(values: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """The value of the first key that holds one; null if all that are there are null."""
    there = [values[key] for key in keys if key in values]
    return next((value for value in there if value is not None), None if there else MISSING)


def _lines(first: Any, second: Any) -> list[Part]:
    """Two contents as one, with a line break between them where both say something."""
    before, after = content_parts(first), content_parts(second)
    line: list[Part] = [{"type": "text", "text": "\n"}] if before and after else []
    parts: list[Part] = []
    for part in [*before, *line, *after]:
        # Pieces are tokenized apart: a text that was cut would give other tokens.
        if parts and part["type"] == parts[-1]["type"] == "text":
            part = {"type": "text", "text": parts.pop()["text"] + part["text"]}
        parts.append(part)
    return parts


def _split_pair(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """ms-swift's `{"human": ..., "assistant": ...}` as two turns; any other turn alone."""
    if not {"human", "assistant"} <= turn.keys() or any(key in turn for key in ROLE_KEYS):
        return [turn]
    rest = {key: value for key, value in turn.items() if key not in ("human", "assistant")}
    asked = {"role": "user", "content": turn["human"]}
    return [asked, {"role": "assistant", "content": turn["assistant"]} | rest]


def _message(turn: dict[str, Any], pictures: list[ImageSource | None]) -> Message:
    """One turn as a message; the pictures of its parts are added to `pictures`."""
    role = _role(first_of(turn, ROLE_KEYS))
    for key in UNREAD_IN_TURNS:
        if turn.get(key):
            raise ValueError(f'"{key}" cannot be learned here; {REMEDY}')
    content = first_of(turn, CONTENT_KEYS)
    if isinstance(content, list):
        content = [_part(part, pictures) for part in content]
    # Told here, with the number that the turn has in the file.
    content_parts(content)
    return {"role": role, "content": content} | _learned(turn, role)


def _role(role: Any) -> str:
    if isinstance(role, str) and role in TOOL_ROLES:
        raise ValueError(f"the role is {role!r}: calls of tools cannot be learned; drop the record")
    if isinstance(role, str) and role in OTHER_ROLES:
        return OTHER_ROLES[role]
    return checked_role(role)


def _learned(turn: dict[str, Any], role: str) -> dict[str, bool]:
    """`{"loss": False}` where a turn says, under whatever key, that it is not learned."""
    given = {key: turn[key] for key in LEARNED_KEYS if turn.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise ValueError(
                f'"{key}" is {brief(value)}; a turn is learned (true, 1) or not (false, 0)'
            )
        if role != "assistant" and value:
            raise ValueError(f'"{key}" is {brief(value)}, but only answers are learned; drop it')
    if len({bool(value) for value in given.values()}) > 1:
        raise ValueError(f"{' and '.join(given)} contradict each other; keep one")
    return {"loss": False} if given and not any(given.values()) else {}


def _part(raw: Any, pictures: list[ImageSource | None]) -> Any:
    """One part with our names; what is no part is left for the Sample's own checks."""
    kind = raw.get("type") if isinstance(raw, dict) else None
    if not isinstance(kind, str):
        return raw
    if kind in UNREAD_TYPES:
        raise ValueError(f"a part is of type {kind!r}, which cannot be learned here; {REMEDY}")
    if kind in TEXT_TYPES:
        return {"type": "text", "text": raw.get("text", MISSING)}
    if kind in IMAGE_TYPES:
        pictures.append(_own_picture(raw))
        return {"type": "image"}
    return raw


def _own_picture(part: dict[str, Any]) -> ImageSource | None:
    """The picture that an image part names itself, if it does."""
    # A table export has every column in every part, null where it does not apply.
    own = [(key, part[key]) for key in PICTURE_KEYS if part.get(key) is not None]
    if len(own) > 1:
        raise ValueError(f"an image part names {len(own)} pictures; one part is one picture")
    if part.get("file_id") is not None:
        raise ValueError('an image part names a "file_id" of a service; give the picture itself')
    for key, value in own:
        if key == "source":
            return anthropic_source(value)
        if key == "base64":
            return decoded(value)
        if key == "image_url" and isinstance(value, dict):
            return picture_value(value.get("url", MISSING))
        return picture_value(value)
    return None

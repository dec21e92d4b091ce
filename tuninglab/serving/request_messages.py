"""The messages of a request: one dialogue, to be answered, and the bytes of its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from tuninglab.data.images import MAX_PIXELS, REMEDY, check_picture
from tuninglab.data.reading.picture_values import WEB
from tuninglab.data.reading.turns import (
    IMAGE_TYPES,
    PICTURE_KEYS,
    TEXT_TYPES,
    TOOL_ROLES,
    UNREAD_IN_TURNS,
    joined,
    read_turns,
)
from tuninglab.data.sample import (
    MISSING,
    ImageSource,
    Message,
    StoredPicture,
    brief,
    count_images,
    normal_messages,
    plain_text,
)
from tuninglab.errors import UserError
from tuninglab.serving.picture_urls import SENDING, fetch_picture
from tuninglab.untrusted import MIB

MOST_MESSAGES, MOST_PICTURES = 100, 32
# No model here reads a quarter of it; to cut it into tokens would keep all others waiting.
MOST_LETTERS = 2**20
# Of all pictures of a request: more than a body can bring, so it bounds what is fetched.
MOST_BYTES = 64 * MIB
# Of all pictures of a request: 32 photos of 13 million. A picture of the most that one may have can
# be a file of 250 KiB, and takes most of a second.
MOST_PIXELS = 5 * MAX_PIXELS


@dataclass(frozen=True)
class WebPicture(StoredPicture):
    """A picture at an address, fetched when it is read.

    Args:
        url: as the client gave it.
        hosts: that may be asked (see `fetch_picture`).
    """

    url: str
    hosts: tuple[str, ...]

    @property
    def name(self) -> str:
        """The address."""
        return self.url

    def read(self) -> bytes:
        """The bytes of the picture's file.

        Raises:
            UserError: with what was refused, for the client.
        """
        try:
            return fetch_picture(self.url, self.hosts)
        except ValueError as error:
            raise UserError(str(error)) from error


def read_messages(
    messages: Any, picture_hosts: Sequence[str] = ()
) -> tuple[list[Message], tuple[bytes, ...]]:
    """The messages in one form, and the bytes of a picture file for each of their image parts.

    System messages are joined into the first, as are neighbours of one role; messages that say
    nothing are left out. A text is only text, `<image>` in it too. No file is ever opened.

    Args:
        messages: as the client gave them, in the spelling of OpenAI (chat or responses) or of
            Anthropic.
        picture_hosts: that pictures may be fetched from; none: pictures are in the request.

    Raises:
        ValueError: what cannot be read, for the client.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("expected a list of messages, the last of them from the user")
    if len(messages) > MOST_MESSAGES:
        raise ValueError(f"{len(messages)} messages; at most {MOST_MESSAGES} are read")
    hosts = tuple(picture_hosts)
    turns = [_turn(number, message, hosts) for number, message in enumerate(messages, 1)]
    pictures = sum(_is_image(part) for turn in turns for part in turn["content"])
    if pictures > MOST_PICTURES:
        raise ValueError(f"{pictures} pictures; at most {MOST_PICTURES} are read")
    read = read_turns(turns)
    dialogue = _dialogue(normal_messages(read.messages))
    return dialogue, tuple(_files(read.pictures))


def _turn(number: int, message: Any, hosts: tuple[str, ...]) -> dict[str, Any]:
    """A message for `read_turns`, after a look at what is meant for others than this server."""
    if not isinstance(message, dict):
        raise ValueError(f"message {number} is {brief(message)}; expected an object")
    role, content = message.get("role", MISSING), message.get("content")
    unread = next((key for key in UNREAD_IN_TURNS if message.get(key)), None)
    if unread or (isinstance(role, str) and role in TOOL_ROLES):
        what = f'"{unread}"' if unread else f'the role "{role}"'
        raise ValueError(f"message {number}: {what} is not read here; send text and pictures")
    # In a string `<image>` would be a mark.
    if content is None or isinstance(content, str):
        content = [{"type": "text", "text": content or ""}]
    if not isinstance(content, list):
        raise ValueError(
            f"message {number}: the content is {brief(content)}; expected a text or a list of parts"
        )
    return {"role": role, "content": [_part(number, part, hosts) for part in content]}


def _part(number: int, part: Any, hosts: tuple[str, ...]) -> dict[str, Any]:
    kind = part.get("type", MISSING) if isinstance(part, dict) else part
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise ValueError(f"message {number}: a part is {brief(kind)}; expected text or image_url")
    if kind not in TEXT_TYPES | IMAGE_TYPES:
        raise ValueError(
            f"message {number}: a part is of type {brief(kind)}, which is not read here; send text "
            "and pictures (text, image_url)"
        )
    address = _web_address(part) if _is_image(part) else None
    if address is None:
        return part
    if not hosts:
        raise ValueError(f"message {number}: pictures are not fetched. {SENDING}")
    return {"type": "image", "image": WebPicture(address, hosts)}


def _is_image(part: dict[str, Any]) -> bool:
    return part["type"] in IMAGE_TYPES


def _web_address(part: dict[str, Any]) -> str | None:
    """The address that an image part names, if it is one of the web and all that it names."""
    named = [part[key] for key in PICTURE_KEYS if part.get(key) is not None]
    if len(named) != 1:
        return None
    value = named[0].get("url") if isinstance(named[0], dict) else named[0]
    return value if isinstance(value, str) and WEB.match(value) else None


def _dialogue(messages: list[Message]) -> list[Message]:
    last = messages[-1]
    if last["role"] != "user":
        raise ValueError(f"the last message is from the {last['role']}; expected the user's")
    if not (plain_text(last).strip() or count_images([last])):
        raise ValueError("the last message says nothing; ask something")
    letters = sum(len(plain_text(message)) for message in messages)
    if letters > MOST_LETTERS:
        raise ValueError(f"{letters:,} letters; at most {MOST_LETTERS:,} are read")
    for number, message in enumerate(messages, 1):
        if message["role"] != "user" and count_images([message]):
            raise ValueError(
                f"message {number}: pictures belong to the user's messages, and this is from the "
                f"{message['role']}"
            )
    # An answer that was stopped before its first word stays in many a client's dialogue.
    said = [message for message in messages if message["content"]]
    systems = joined(message for message in said if message["role"] == "system")
    return [*systems, *joined(message for message in said if message["role"] != "system")]


def _files(pictures: Sequence[ImageSource | None]) -> list[bytes]:
    """The bytes of each picture, after a look at all of it.

    Raises:
        ValueError: one cannot be had, is damaged or too large, or they are too large together.
    """
    files: list[bytes] = []
    total_bytes = total_pixels = 0
    try:
        for number, picture in enumerate(pictures, 1):
            files.append(_file(number, picture))
            width, height = check_picture(BytesIO(files[-1]), f"picture {number}", whole=False)
            total_bytes, total_pixels = total_bytes + len(files[-1]), total_pixels + width * height
            if total_bytes > MOST_BYTES or total_pixels > MOST_PIXELS:
                raise ValueError(
                    f"the pictures have more than {MOST_BYTES // MIB} MiB or {MOST_PIXELS:,} "
                    "pixels together; send fewer or smaller ones"
                )
        # Nothing is decoded before all is known to be in bounds.
        for number, file in enumerate(files, 1):
            check_picture(BytesIO(file), f"picture {number}", whole=True)
    except UserError as error:
        raise ValueError(str(error).replace(REMEDY, "send another")) from None
    return files


def _file(number: int, picture: ImageSource | None) -> bytes:
    file = picture.read() if isinstance(picture, WebPicture) else picture
    # What the reader leaves as a text would be the name of a file of ours.
    if not isinstance(file, bytes):
        named = "not in its part" if file is None else f"given as {brief(file)}"
        raise ValueError(f"picture {number} is {named}. {SENDING}")
    return file

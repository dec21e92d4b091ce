"""What stands in a record in place of a picture: a path, a data: URL, base64, bytes, a struct.

The same for files and for requests: nothing here opens a file or a connection.
"""

import base64
import re
from typing import Any

from PIL import Image

from tuninglab.data.picture_files import MIB
from tuninglab.data.sample import MISSING, ImageSource, StoredPicture, brief, checked_text

MAX_INLINE = 20 * MIB  # of a picture that is written out in a record, decoded
URL_SAFE = str.maketrans("-_", "+/")
WEB = re.compile(r"https?://", re.IGNORECASE)
SPACE = re.compile(r"\s+")
BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
# Where the kinds of images.py begin; four bytes in between are a size.
MAGIC = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0",
    re.DOTALL,
)
HEAD = 24  # letters of base64 that hold the longest of them


def picture_value(value: Any) -> ImageSource:
    """A picture as a record gives it.

    Args:
        value: a path (it stays the text that it is), a data: URL, base64, `{"bytes", "path"}` as
            Hugging Face's `Image` feature has it (the bytes win), or what is a picture already.

    Raises:
        ValueError: it is none of these, is to be fetched, cannot be decoded or is too large.
    """
    if isinstance(value, bytes | StoredPicture | Image.Image):
        return value
    if isinstance(value, dict) and value and value.keys() <= {"bytes", "path"}:
        data = value.get("bytes")
        if isinstance(data, str):
            return decoded(data)
        return picture_value(value.get("path") if data is None else data)
    if not isinstance(value, str) or not value:
        raise ValueError(f"a picture is named by {brief(value)}; expected a path as text")
    if value[:5].lower() == "data:":
        return _of_data_url(value)
    # Never fetched: a record must not make this machine open connections.
    if WEB.match(value):
        raise ValueError(
            f"picture {brief(value, 200)} is a URL; download it first and give its path, or write "
            "it out as a data: URL"
        )
    return decoded(value) if _is_base64(value) else checked_text(value)


def decoded(text: Any) -> bytes:
    """The bytes that base64 text stands for; of either alphabet, with or without spaces or padding.

    Raises:
        ValueError: it is no such text, or holds more than MAX_INLINE bytes.
    """
    if not isinstance(text, str):
        raise ValueError(f"a picture is given as {brief(text)}; expected base64 text")
    compact = SPACE.sub("", text).rstrip("=").translate(URL_SAFE)
    if len(compact) * 3 // 4 > MAX_INLINE:
        raise ValueError(
            f"a picture written out as text has more than {MAX_INLINE // MIB} MiB; make it "
            "smaller, or keep it as a file"
        )
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except ValueError:
        raise ValueError(f"a picture is given as {brief(text)}, which is not base64") from None


def anthropic_source(source: Any) -> ImageSource:
    """The picture of an Anthropic block: `{"type": "base64", "data"}` or `{"type": "url", "url"}`.

    Raises:
        ValueError: it is of another kind, or as `picture_value`.
    """
    kind = source.get("type", MISSING) if isinstance(source, dict) else source
    if kind == "base64":
        return decoded(source.get("data", MISSING))
    if kind == "url":
        return picture_value(source.get("url", MISSING))
    raise ValueError(
        f'the "source" of an image part is of type {brief(kind)}; expected "base64" or "url"'
    )


def _of_data_url(url: str) -> bytes:
    head, comma, data = url.partition(",")
    # What the URL says of its kind is not believed: Pillow looks at the bytes.
    if not comma or head.rpartition(";")[2].strip().lower() != "base64":
        raise ValueError(
            f"picture {brief(url)} is a data: URL without base64; only pictures of pixels written "
            'as "data:image/png;base64,..." are read'
        )
    return decoded(data)


def _is_base64(text: str) -> bool:
    """Whether text is a picture: no path begins as one does, without a dot anywhere."""
    head = SPACE.sub("", text[: 4 * HEAD])[:HEAD].translate(URL_SAFE)
    if len(head) < HEAD or not BASE64.fullmatch(head) or "=" in head:
        return False
    # Without spaces: a pattern that has them may go over a long run of them again and again.
    return bool(MAGIC.match(base64.b64decode(head)) and BASE64.fullmatch(SPACE.sub("", text)))

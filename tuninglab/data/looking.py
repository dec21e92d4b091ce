"""What a picture is, by its content; of a file that stayed as it was, without reading it again."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from PIL import Image

from tuninglab.data.images import load_image
from tuninglab.data.sample import ImageSource
from tuninglab.data.sources import picture_digest


class Seen(NamedTuple):
    """A picture by its sha256; of a file also where it is, its size and time of change (ns)."""

    digest: bytes
    file: str | None = None
    stamp: tuple[int, int] = (0, 0)


def look_at(image: ImageSource, known: Mapping[str, list[Any]]) -> Seen:
    """What a picture is, by its content; a file is read unless `known` has it as it is.

    Args:
        image: as `load_image` takes it.
        known: from `FeatureCache.stamps`.

    Raises:
        UserError: the picture cannot be read.
    """
    if not is_file(image):
        return Seen(content_digest(image))
    try:
        path, file = os.fspath(image), os.stat(image)
        before = known.get(path, [])
        if before[:2] == [file.st_size, file.st_mtime_ns]:
            return Seen(bytes.fromhex(before[2]), path, (before[0], before[1]))
        return Seen(content_digest(image), path, (file.st_size, file.st_mtime_ns))
    except OSError:
        # Tells what is wrong with it.
        load_image(image)
        raise


def content_digest(image: ImageSource) -> bytes:
    """The sha256 of a picture's file; of a picture in memory, of its pixels in RGB."""
    # In other modes pixels alone do not say which colours they are.
    picture = load_image(image) if isinstance(image, Image.Image) else image
    return bytes.fromhex(picture_digest(picture))


def is_file(image: ImageSource) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a picture is named by its file."""
    return isinstance(image, str | os.PathLike)

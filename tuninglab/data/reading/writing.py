"""Samples to a `messages` file that our own reader turns into equal samples."""

import base64
import json
import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from tuninglab.data.images import load_image
from tuninglab.data.picture_files import MIB, open_picture
from tuninglab.data.reading.picture_values import MAX_INLINE, picture_value
from tuninglab.data.sample import ImageSource, Sample, StoredPicture, brief
from tuninglab.disk import whole_file
from tuninglab.errors import UserError


def write_samples(samples: Iterable[Sample], path: str | os.PathLike[str]) -> None:
    """Write samples as JSON lines: messages, pictures, id, kind and answers.

    Picture files below the folder of `path` are named; all others are written out as data: URLs,
    byte for byte, and PIL images as PNG.

    Args:
        samples: any number of them; one is held at a time.
        path: of the file, which is replaced if it is there.

    Raises:
        UserError: a picture cannot be read, or is too large to be written out.
        WorkError: the file cannot be written.
    """
    path = Path(path)
    folder = path.parent.resolve()
    with whole_file(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as lines:
        for sample in samples:
            lines.write(json.dumps(_record(sample, folder), ensure_ascii=False) + "\n")


def _record(sample: Sample, folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = {"messages": sample.messages}
    named = {"id": sample.id, "kind": sample.kind, "answers": list(sample.answers) or None}
    record |= {key: value for key, value in named.items() if value is not None}
    if sample.images:
        record["images"] = [_shown(picture, folder) for picture in sample.images]
    return record


def _shown(picture: ImageSource, folder: Path) -> str:
    if isinstance(picture, str | os.PathLike):
        name = _name_below(picture, folder)
        if name is not None:
            return name
    data = _content(picture)
    if len(data) > MAX_INLINE:
        label = picture.name if isinstance(picture, StoredPicture) else picture
        label = "given as bytes" if isinstance(label, bytes) else brief(label, 200)
        raise UserError(
            f"picture {label} is too large to be written out ({MAX_INLINE // MIB} MiB "
            f"at most); copy its file below {folder}"
        )
    # Of which kind it is, is seen by its bytes; nobody relies on what the URL says.
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


def _name_below(picture: str | os.PathLike[str], folder: Path) -> str | None:
    """The name of a file relative to a folder that holds it; None where that would not be read."""
    file = Path(picture).resolve()
    if not file.is_relative_to(folder):
        return None
    name = file.relative_to(folder).as_posix()
    try:
        # A file may be called "data:a.png", or what is no text at all.
        return name if picture_value(name) == name else None
    except ValueError:
        return None


def _content(picture: ImageSource) -> bytes:
    """The bytes of a picture's file; of one that would be too large at least enough to tell."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, StoredPicture):
        return picture.read()
    if isinstance(picture, Image.Image):
        file = BytesIO()
        # As a model would see it: upright, and in a mode that PNG has.
        load_image(picture).save(file, "PNG")
        return file.getvalue()
    with open_picture(picture) as file:
        return file.read(MAX_INLINE + 1)

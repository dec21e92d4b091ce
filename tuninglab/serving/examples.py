"""Questions of a run to try: those that it was scored by, with their pictures."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from tuninglab.console import say
from tuninglab.data.images import check_picture
from tuninglab.errors import UserError
from tuninglab.untrusted import MIB, read_bytes, read_json, shown

LARGEST_FILE, LARGEST_PICTURE = 64 * MIB, 4 * MIB
# More than a run writes; a page shows no more either.
MOST = 64
MOST_LETTERS = 4000
# What a browser shows and never runs, as an SVG could be.
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


@dataclass(frozen=True)
class Example:
    """A question, what is right, and the file of its picture.

    Attributes:
        question: empty where the picture alone asks, as for a caption.
        answer: that the data has; empty where it has none.
        picture: the bytes of the file; None: the question is about no picture.
        media_type: of the picture.
    """

    question: str
    answer: str
    picture: bytes | None = None
    media_type: str = "image/png"


def read_examples(run: Path | None) -> list[Example]:
    """The questions in the answers.json of a run, in their order; none where there is no such file.

    A run may have been handed on: what cannot be shown is left out, and nothing outside of its
    folder is read, whatever the file names.

    Args:
        run: its folder; None: no run is served.
    """
    file = None if run is None else run / "answers.json"
    if run is None or file is None or not file.is_file():
        return []
    try:
        cards = read_json(file, LARGEST_FILE, "answers of the run")
    except UserError as error:
        say(f"{error}. There are no questions to try")
        return []
    cards = cards[:MOST] if isinstance(cards, list) else []
    found = [_example(card, run) for card in cards if isinstance(card, dict)]
    return [example for example in found if example is not None]


def _example(card: dict[str, Any], run: Path) -> Example | None:
    question, answer = card.get("question"), card.get("truth", "")
    if not isinstance(question, str) or len(question) > MOST_LETTERS:
        return None
    answer = answer[:MOST_LETTERS] if isinstance(answer, str) else ""
    name = card.get("picture")
    if name is None:
        return Example(question, answer) if question.strip() else None
    try:
        return Example(question, answer, *_picture(name, run))
    except UserError as error:
        # Without its picture it is another question.
        say(f"A question to try is left out: {error}")
        return None


def _picture(name: Any, run: Path) -> tuple[bytes, str]:
    """The bytes of a picture in the run folder, and their media type.

    Raises:
        UserError: the name leads out of the folder, or to no picture.
    """
    if not isinstance(name, str) or Path(name).suffix.lower() not in MEDIA_TYPES:
        raise UserError(f"picture {shown(name)} is no name of a PNG or JPEG file")
    try:
        place = (run / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"picture {shown(name)} cannot be the name of a file") from error
    if not place.is_relative_to(run.resolve()):
        raise UserError(f"picture {shown(name)} lies outside of the run {run}")
    content = read_bytes(place, LARGEST_PICTURE, "picture")
    check_picture(BytesIO(content), f"picture {shown(name)}", whole=True)
    return content, MEDIA_TYPES[Path(name).suffix.lower()]

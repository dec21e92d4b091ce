"""Pages of the web whose pictures stand among their sentences: MMC4."""

from collections.abc import Mapping
from typing import Any

from tuninglab.data.reading.fields import text_of, texts_of, whole
from tuninglab.data.reading.found import Format, Reading
from tuninglab.data.reading.picture_values import decoded
from tuninglab.data.reading.records import checked_object, refuse_unread, system_messages
from tuninglab.data.sample import ImageSource, Sample, brief

# As OpenFlamingo was trained.
LEAST_SIMILARITY = 0.24
MOST_PICTURES = 6
SMALLEST = 10_000  # bytes; what is not larger is an icon or a button


def _fits(record: Mapping[str, Any]) -> bool:
    return {"text_list", "image_info"} <= record.keys()


def _samples(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    """A page as a dialogue: each picture a question, the sentences up to the next one its answer.

    The sentences before the first picture stand before it as context. Pictures of one sentence
    stand in one turn. Pictures come in the order of their sentences, whatever their own order.
    """
    refuse_unread(record)
    if record.get("history"):
        raise ValueError('the record has "history", but nothing is said before a page; drop it')
    sentences = texts_of(record, "text_list")
    placed = sorted(_placed(record, len(sentences), reading), key=lambda one: one[0])
    if not placed:
        reading.notes["MMC4 pages without a fitting picture, left out"] += 1
        return []
    if len(placed) > MOST_PICTURES:
        surplus = f"MMC4 pictures beyond the first {MOST_PICTURES} of a page, left out"
        reading.notes[surplus] += len(placed) - MOST_PICTURES
        placed = placed[:MOST_PICTURES]
    starts = sorted({start for start, _ in placed})
    messages = []
    for start, end in zip(starts, [*starts[1:], len(sentences)], strict=True):
        context = [] if messages or not start else [_text(sentences[:start])]
        pictures = [{"type": "image"} for place, _ in placed if place == start]
        messages.append({"role": "user", "content": context + pictures})
        messages.append({"role": "assistant", "content": [_text(sentences[start:end])]})
    messages = system_messages(record) + messages
    return [Sample(messages, [picture for _, picture in placed], origin)]


def _text(sentences: list[str]) -> dict[str, str]:
    return {"type": "text", "text": " ".join(sentences)}


def _placed(
    record: Mapping[str, Any], sentences: int, reading: Reading
) -> list[tuple[int, ImageSource]]:
    """The sentence that each picture stands at, and the picture; in the order of the pictures."""
    infos = record.get("image_info")
    if not isinstance(infos, list):
        raise ValueError(f"image_info is {brief(infos)}; expected a list")
    infos = [checked_object(info) for info in infos]
    pictures = {number: _picture(info) for number, info in enumerate(infos)}
    large = {number: one for number, one in pictures.items() if not _is_small(one)}
    _note(reading, f"MMC4 pictures of at most {SMALLEST:,} bytes, left out", infos, large)
    if any(info.get("matched_text_index") is None for info in infos):
        matches = _assigned(_matrix(record, len(infos), sentences), list(large))
    else:
        matches = {number: _match(record, infos[number], number) for number in large}
    # Not a number is below everything.
    fitting = {n: place for n, (place, like) in matches.items() if like >= LEAST_SIMILARITY}
    _note(reading, "MMC4 pictures that fit no sentence, left out", large, fitting)
    for place in fitting.values():
        if place >= sentences:
            raise ValueError(f"a picture stands at sentence {place}, from 0, of {sentences}")
    return [(fitting[number], large[number]) for number in sorted(fitting)]


def _note(reading: Reading, what: str, before: Any, after: Any) -> None:
    if lost := len(before) - len(after):
        reading.notes[what] += lost


def _picture(info: dict[str, Any]) -> ImageSource:
    """The bytes that stand in the record itself, or else the name of a file."""
    inline = info.get("image_base64")
    if inline is None:
        return text_of(info, "image_name")
    return decoded(inline)


def _is_small(picture: ImageSource) -> bool:
    return isinstance(picture, bytes) and len(picture) <= SMALLEST


def _match(record: Mapping[str, Any], info: dict[str, Any], number: int) -> tuple[int, float]:
    """The sentence that the set itself gave a picture, and how alike the two are."""
    place = whole(info["matched_text_index"], "matched_text_index")
    like = info.get("matched_sim")
    if like is None:
        rows = record.get("similarity_matrix")
        row = rows[number] if isinstance(rows, list) and number < len(rows) else None
        like = row[place] if isinstance(row, list) and place < len(row) else None
    return place, _similarity(like)


def _matrix(record: Mapping[str, Any], pictures: int, sentences: int) -> list[list[float]]:
    rows = record.get("similarity_matrix")
    rows = rows if isinstance(rows, list) and len(rows) == pictures else [None]
    if not all(isinstance(row, list) and len(row) == sentences for row in rows):
        raise ValueError(
            "there is neither a matched_text_index of every picture nor a similarity_matrix of "
            f"{pictures} pictures by {sentences} sentences"
        )
    return [[_similarity(value) for value in row] for row in rows if isinstance(row, list)]


def _assigned(matrix: list[list[float]], pictures: list[int]) -> dict[int, tuple[int, float]]:
    """A sentence of its own for each picture, the most alike pair first."""
    pairs = [
        (-like, picture, place)
        for picture in pictures
        for place, like in enumerate(matrix[picture])
        if like >= LEAST_SIMILARITY
    ]
    matches: dict[int, tuple[int, float]] = {}
    taken: set[int] = set()
    for unlike, picture, place in sorted(pairs):
        if picture not in matches and place not in taken:
            matches[picture] = (place, -unlike)
            taken.add(place)
    return matches


def _similarity(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        shown = "missing" if value is None else brief(value)
        raise ValueError(f"the similarity of a picture is {shown}; expected a number")
    return value


KEYS = ("text_list", "image_info")
MMC4 = Format("mmc4", "MMC4, pictures among sentences", _fits, _samples, KEYS)

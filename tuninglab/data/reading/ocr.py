"""Questions about written words in pictures: TextVQA's own form, OCR-VQA, DocVQA, ChartQA."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuninglab.data.reading.fields import (
    alone,
    answers_of,
    each,
    first_of,
    identity,
    listed,
    named,
    numbered,
    of_split,
    question_record,
    text_of,
    texts_of,
)
from tuninglab.data.reading.found import Document, Format, RawRecord, Reading
from tuninglab.data.reading.records import id_of, listed_pictures, majority
from tuninglab.data.reading.single_turns import single_turn
from tuninglab.data.sample import ImageSource, Sample, brief

# OCR-VQA writes its splits as numbers.
OCR_SPLITS = {1: "train", 2: "val", 3: "test"}
ENDING = re.compile(r"\.(?:jpe?g|png|gif|webp)$", re.IGNORECASE)


def _is_textvqa(documents: Sequence[Any]) -> bool:
    first = first_of(alone(documents), "data")
    return {"question", "image_id"} <= first.keys() and "image" not in first


def _textvqa(documents: Sequence[Any], file: str, reading: Reading) -> Iterator[RawRecord]:
    def convert(item: dict[str, Any]) -> list[dict[str, Any]]:
        name = f"{identity(item.get('image_id'), 'the image_id')}.jpg"
        # The pictures of val lie in train_images.
        names = [name, f"train_images/{name}", f"test_images/{name}"]
        return [_record(item, reading.existing(names))]

    return each(numbered(listed(documents[0], "data", file), f"{file}, question"), convert)


def _is_docvqa(documents: Sequence[Any]) -> bool:
    return {"question", "questionId", "image"} <= first_of(alone(documents), "data").keys()


def _docvqa(documents: Sequence[Any], file: str, reading: Reading) -> Iterator[RawRecord]:
    def convert(item: dict[str, Any]) -> list[dict[str, Any]]:
        name = text_of(item, "image")
        kinds = item.get("question_types")
        kind = kinds[0] if isinstance(kinds, list) and kinds else None
        found = reading.existing([name, name.rpartition("/")[2] or name])
        return [_record(item, found, kind)]

    return each(numbered(listed(documents[0], "data", file), f"{file}, question"), convert)


def _record(item: dict[str, Any], image: str, kind: Any = None) -> dict[str, Any]:
    return question_record(item, image, answers_of(item, "answers"), id=id_of(item), kind=kind)


def _is_ocrvqa(documents: Sequence[Any]) -> bool:
    return {"imageURL", "questions", "answers"} <= first_of(alone(documents)).keys()


def _ocrvqa(documents: Sequence[Any], file: str, reading: Reading) -> Iterator[RawRecord]:
    """Each question about a book is a record; they have no ids, so the book's and a number."""

    def convert(book: dict[str, Any]) -> list[dict[str, Any]]:
        """The questions about a book, a record each."""
        name = book["question_id"]
        if _ocrvqa_split(book) is None:
            raise ValueError(f"the split is {brief(book.get('split'))}; expected 1, 2 or 3")
        questions, answers = texts_of(book, "questions"), texts_of(book, "answers")
        if len(questions) != len(answers):
            raise ValueError(f"{len(questions)} questions but {len(answers)} answers")
        # Whoever fetched the pictures kept the ending of the address, or made all of them .jpg.
        ending = ENDING.search(text_of(book, "imageURL"))
        names = list(dict.fromkeys([f"{name}.jpg", f"{name}{ending[0] if ending else '.jpg'}"]))
        found = reading.existing([*names, *(f"images/{one}" for one in names)])
        return [
            question_record({"question": question}, found, [answer], id=f"{name}-{number}")
            for number, (question, answer) in enumerate(zip(questions, answers, strict=True), 1)
        ]

    items = named(documents[0], f"{file}, entry")
    return each(of_split(items, _ocrvqa_split, file, reading), convert)


def _ocrvqa_split(book: dict[str, Any]) -> str | None:
    split = book.get("split")
    return OCR_SPLITS.get(split) if isinstance(split, int) else None


def _is_chartqa(record: Mapping[str, Any]) -> bool:
    return {"query", "label"} <= record.keys() and bool(record.keys() & {"imgname", "image"})


def _chartqa(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    images: list[ImageSource] = listed_pictures(record)
    if not images and record.get("imgname") is not None:
        name = text_of(record, "imgname")
        images = [reading.existing([name, f"png/{name}"])]
    if not images:
        raise ValueError("the question is about no picture; name the chart (imgname)")
    question, answers = text_of(record, "query"), answers_of(record, "label")
    return [single_turn(record, question, majority(answers), origin, images, answers)]


TEXTVQA = Document("textvqa", "TextVQA", _is_textvqa, _textvqa)
DOCVQA = Document("docvqa", "DocVQA", _is_docvqa, _docvqa)
OCRVQA = Document("ocrvqa", "OCR-VQA", _is_ocrvqa, _ocrvqa)
CHARTQA = Format("chartqa", "ChartQA", _is_chartqa, _chartqa, ("imgname", "query", "label"))

"""The official files of VQAv2, OK-VQA, VizWiz and TextVQA: questions here, annotations there."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from tuninglab.data.reading.fields import (
    answers_of,
    base_names,
    each,
    first_of,
    given,
    identity,
    indexed,
    listed,
    named_split,
    numbered,
    question_record,
)
from tuninglab.data.reading.found import Document, RawRecord, Reading
from tuninglab.data.sample import brief
from tuninglab.errors import UserError

PARTS = ("train", "val", "test")
TOGETHER = "give both together: --data questions.json+annotations.json"


def _fits(documents: Sequence[Any]) -> bool:
    # CLEVR has "questions" too, and COCO "annotations", but not such names in them.
    return bool(documents) and all(
        any("question_id" in first_of(document, key) for key in ("questions", "annotations"))
        for document in documents
    )


def _records(documents: Sequence[Any], file: str, reading: Reading) -> Iterator[RawRecord]:
    listings = [(document, listed(document, "questions", file)) for document in documents]
    splits = [_split(document, file) for document, items in listings for _ in items]
    questions = [item for _, items in listings for item in items]
    annotations = [item for document in documents for item in listed(document, "annotations", file)]
    if not annotations:
        raise UserError(f"{file} holds questions without their answers (annotations); {TOGETHER}")
    if not questions:
        raise UserError(f"{file} holds annotations without their questions; {TOGETHER}")
    asked = indexed(questions, "question_id", f"{file}, question")
    answered = indexed(annotations, "question_id", f"{file}, annotation")
    _check_alike(asked.keys() - answered.keys(), "questions have no annotation", file)
    _check_alike(answered.keys() - asked.keys(), "annotations have no question", file)
    rows = zip(asked.items(), splits, strict=True)
    items = (
        {"question": item, "annotation": answered[name], "split": split}
        for (name, item), split in rows
    )
    return each(numbered(items, f"{file}, question"), partial(_records_of, reading=reading))


def _check_alike(names: set[str], what: str, file: str) -> None:
    if names:
        raise UserError(
            f"{file}: {len(names):,} {what}, for example question_id {brief(min(names))}; are both "
            "files of the same set and split?"
        )


def _records_of(item: dict[str, Any], reading: Reading) -> list[dict[str, Any]]:
    question, annotation = item["question"], item["annotation"]
    name = identity(question.get("image_id"), "the image_id")
    other = given(annotation, "image_id")
    if other is not None and identity(other, "the annotation's image_id") != name:
        raise ValueError(f"its picture is {brief(name)}, that of its annotation {brief(other)}")
    image = reading.existing(_picture_names(question["image_id"], item["split"]))
    answers = answers_of(annotation, "answers", "multiple_choice_answer")
    # The first words of a question tell more of its usual answer than yes/no, number, other.
    kind = given(annotation, "question_type", "answer_type")
    own = question["question_id"]
    return [question_record(question, image, answers, question_id=own, kind=kind)]


def _split(document: dict[str, Any], file: str) -> str | None:
    """The folder of the pictures ("train2014"), from the document or the names of its files."""
    subtype = document.get("data_subtype")
    if isinstance(subtype, str) and (subtype in PARTS or named_split(subtype)):
        return named_split(subtype) or subtype
    return named_split(base_names(file))


def _picture_names(image_id: str | int, split: str | None) -> list[str]:
    """What the picture may be called: COCO's are numbers, VizWiz's names of files, TextVQA's ids.

    Raises:
        ValueError: COCO's split is not known.
    """
    if isinstance(image_id, str):
        name = image_id
        if not name.lower().endswith((".jpg", ".jpeg", ".png")):
            name += ".jpg"
        # TextVQA keeps pictures of val in the folder of train.
        return [name, *([f"{split}/{name}"] if split else []), f"train_images/{name}"]
    if split is None or split in PARTS:
        raise ValueError(
            f'no picture can be named by the image_id {image_id}: neither "data_subtype" nor the '
            "name of the file says train2014, val2014 or test2015; write it there"
        )
    name = f"COCO_{split}_{image_id:012d}.jpg"
    return [name, f"{split}/{name}"]


VQA = Document("vqa", "VQA questions and annotations", _fits, _records)

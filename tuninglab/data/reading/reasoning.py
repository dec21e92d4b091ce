"""Sets that ask for reasoning about a picture or two: GQA, CLEVR, NLVR2, SNLI-VE."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuninglab.data.reading.fields import (
    alone,
    answers_of,
    each,
    first_of,
    given,
    identity,
    listed,
    named,
    numbered,
    question_record,
    text_of,
)
from tuninglab.data.reading.found import Document, Format, RawRecord, Reading
from tuninglab.data.reading.records import listed_pictures
from tuninglab.data.reading.single_turns import single_turn
from tuninglab.data.sample import ImageSource, Sample, brief

LABELS = ("entailment", "neutral", "contradiction")


def _is_gqa(documents: Sequence[Any]) -> bool:
    return {"imageId", "question"} <= first_of(alone(documents)).keys()


def _gqa(documents: Sequence[Any], file: str, reading: Reading) -> Iterator[RawRecord]:
    """The short answer is learned, which the official score compares, not the full sentence."""

    def convert(question: dict[str, Any]) -> list[dict[str, Any]]:
        name = f"{identity(question.get('imageId'), 'the imageId')}.jpg"
        types = question.get("types")
        kind = types.get("structural") if isinstance(types, dict) else None
        image = reading.existing([name, f"images/{name}"])
        answers = answers_of(question, "answer")
        return [question_record(question, image, answers, id=question["question_id"], kind=kind)]

    return each(named(documents[0], f"{file}, question"), convert)


def _is_clevr(documents: Sequence[Any]) -> bool:
    return {"image_filename", "question"} <= first_of(alone(documents), "questions").keys()


def _clevr(documents: Sequence[Any], file: str, reading: Reading) -> Iterator[RawRecord]:
    """The kind of a question is the last step of its program (count, exist, query_color ...)."""

    def convert(item: dict[str, Any]) -> list[dict[str, Any]]:
        name, split = text_of(item, "image_filename"), text_of(item, "split")
        program = item.get("program")
        last = program[-1] if isinstance(program, list) and program else None
        kind = given(last, "function", "type") if isinstance(last, dict) else None
        image = reading.existing([f"images/{split}/{name}", f"{split}/{name}", name])
        answers, own = answers_of(item, "answer"), item.get("question_index")
        return [question_record(item, image, answers, id=own, kind=kind)]

    return each(numbered(listed(documents[0], "questions", file), f"{file}, question"), convert)


def _is_nlvr2(record: Mapping[str, Any]) -> bool:
    named = record.keys() & {"identifier", "images"}
    return {"sentence", "label"} <= record.keys() and bool(named)


def _nlvr2(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    """A statement about two pictures, each with a mark of its own.

    Pictures of one `directory` belong together, which is the unit that the set's authors hold out
    for validation: it becomes the sample's kind.
    """
    label = (
        str(record.get("label")) if isinstance(record.get("label"), bool) else record.get("label")
    )
    if label not in ("True", "False"):
        raise ValueError(f'the label is {brief(label)}; expected "True" or "False"')
    name, images = record.get("identifier"), listed_pictures(record)
    if name is not None:
        name = text_of(record, "identifier")
        images = images or _pair(name, record.get("directory"), reading)
    if len(images) != 2:
        raise ValueError(f"the record has {len(images)} pictures; a statement is about two")
    directory = record.get("directory")
    kind = None if directory is None else identity(directory, "the directory")
    # Of other records, a label that is true or false is a judgement of the answer.
    record = record | {"label": label, "id": name}
    return [single_turn(record, text_of(record, "sentence"), label, origin, images, [label], kind)]


def _pair(name: str, directory: Any, reading: Reading) -> list[ImageSource]:
    """The two pictures that an identifier `split-set-pair-number` names."""
    pair, _, _ = name.rpartition("-")
    split = name.partition("-")[0]
    if not pair or pair == split:
        raise ValueError(f"the identifier is {brief(name)}; expected split-set-pair-number")
    folders = ["", f"{split}/", f"images/{split}/"]
    if directory is not None:  # of training pictures only
        inner = identity(directory, "the directory")
        folders += [f"{split}/{inner}/", f"images/{split}/{inner}/", f"{inner}/"]
    files = [f"{pair}-img{number}.png" for number in (0, 1)]
    return [reading.existing([f"{folder}{file}" for folder in folders]) for file in files]


def _is_snli_ve(record: Mapping[str, Any]) -> bool:
    return {"Flickr30K_ID", "sentence2", "gold_label"} <= record.keys()


def _snli_ve(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    """Whether a picture implies a sentence, where the people who were asked agreed."""
    label = record.get("gold_label")
    if label == "-":
        reading.notes['SNLI-VE sentences that nobody agreed on (label "-"), left out'] += 1
        return []
    if label not in LABELS:
        raise ValueError(f"the gold_label is {brief(label)}; expected one of {', '.join(LABELS)}")
    name = f"{identity(record.get('Flickr30K_ID'), 'the Flickr30K_ID')}.jpg"
    named = reading.existing([name, f"flickr30k_images/{name}", f"flickr30k-images/{name}"])
    images: list[ImageSource] = listed_pictures(record) or [named]
    record = record | {"id": record.get("pairID")}
    return [single_turn(record, text_of(record, "sentence2"), label, origin, images, [label])]


GQA = Document("gqa", "GQA questions", _is_gqa, _gqa)
CLEVR = Document("clevr", "CLEVR questions", _is_clevr, _clevr)
NLVR2_KEYS = ("sentence", "label", "identifier", "images")
SNLI_VE_KEYS = ("Flickr30K_ID", "sentence2", "gold_label")
NLVR2 = Format("nlvr2", "NLVR2, a statement about two pictures", _is_nlvr2, _nlvr2, NLVR2_KEYS)
SNLI_VE = Format(
    "snli_ve", "SNLI-VE, a sentence about a picture", _is_snli_ve, _snli_ve, SNLI_VE_KEYS
)

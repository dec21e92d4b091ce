"""Values of records and documents that others wrote: each of the type it must have, or refused."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tuninglab.data.reading.found import RawRecord, Reading
from tuninglab.data.reading.records import HUGE, answer_texts, checked_object
from tuninglab.data.sample import brief, checked_text
from tuninglab.errors import UserError

SPLIT = re.compile(r"(train|val|test)(?:-dev)?(20\d\d)")


def named_split(text: str) -> str | None:
    """The split of COCO ("train2014") that a text names; None: it names none, or several.

    The questions of test-dev2015 show pictures of test2015.
    """
    splits = {f"{part}{year}" for part, year in SPLIT.findall(text)}
    return splits.pop() if len(splits) == 1 else None


def base_names(file: str) -> str:
    """A file, or several joined by "+", without the folders, which may have names of splits."""
    return "+".join(part.rpartition("/")[2] for part in file.split("+"))


def given(record: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first of these keys that is there and not null; None: there is none."""
    return next((record[key] for key in keys if record.get(key) is not None), None)


def text_of(record: Mapping[str, Any], *keys: str) -> str:
    """The text under the first of these keys.

    Raises:
        ValueError: there is none, it is no text, or it says nothing.
    """
    return as_text(given(record, *keys), f"the {keys[0]}")


def as_text(value: Any, what: str) -> str:
    """A value that is a text and says something.

    Raises:
        ValueError: it is none, or blank; it names `what`.
    """
    if not isinstance(value, str):
        shown = "missing" if value is None else brief(value)
        raise ValueError(f"{what} is {shown}; expected a text")
    if not value.strip():
        raise ValueError(f"{what} is empty; write one or drop the record")
    return checked_text(value)


def texts_of(record: Mapping[str, Any], *keys: str) -> list[str]:
    """The list of texts under the first of these keys; single ones may be empty.

    Raises:
        ValueError: there is no list, it is empty, or one of it is no text.
    """
    values = given(record, *keys)
    if not isinstance(values, list) or not values:
        what = "missing" if values is None else "empty" if values == [] else brief(values)
        raise ValueError(f'"{keys[0]}" is {what}; expected a list of texts')
    for number, value in enumerate(values, 1):
        if not isinstance(value, str):
            raise ValueError(f'number {number} of "{keys[0]}" is {brief(value)}, not a text')
        checked_text(value)
    return values


def answers_of(record: Mapping[str, Any], *keys: str) -> list[str]:
    """The answers under the first of these keys: a text, a list of them, or VQA's objects.

    Raises:
        ValueError: there are none, or one is no text.
    """
    value = given(record, *keys)
    if value is None or value == []:
        raise ValueError(
            "there is no answer; questions of a test split have none and cannot be learned or "
            "scored: use a split with answers"
        )
    return answer_texts(value)


def question_record(
    item: Mapping[str, Any], image: str, answers: list[str], **named: Any
) -> dict[str, Any]:
    """A question of a document as a record that `questions` reads, `named` its name and kind.

    Raises:
        ValueError: it asks nothing.
    """
    return {"image": image, "question": text_of(item, "question"), "answers": answers, **named}


def whole(value: Any, what: str) -> int:
    """A value that is a whole number, from 0 and below 2**63.

    Raises:
        ValueError: it is none; it names `what`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < HUGE:
        shown = "missing" if value is None else brief(value)
        raise ValueError(f"{what} is {shown}; expected a whole number")
    return value


def identity(value: Any, what: str) -> str:
    """What a set calls one of its things, a text or a whole number, as text.

    Raises:
        ValueError: it is neither; it names `what`.
    """
    return as_text(value, what) if isinstance(value, str) else str(whole(value, what))


def first_of(document: Any, key: str | None = None) -> Mapping[str, Any]:
    """The first object of the list under a key, or of all values: what tells kinds of documents.

    Empty where there is none.
    """
    if not isinstance(document, dict):
        return {}
    items: Any = document.values() if key is None else document.get(key)
    if key is not None and not isinstance(items, list):
        return {}
    first = next(iter(items), None)
    return first if isinstance(first, dict) else {}


def alone(documents: Sequence[Any]) -> Any:
    """The document, where only one is given; else None."""
    return documents[0] if len(documents) == 1 else None


def listed(document: Mapping[str, Any], key: str, file: str) -> list[Any]:
    """The list under a key of a document; an empty one where the document has no such key.

    Raises:
        UserError: it is no list.
    """
    items = document.get(key, [])
    if not isinstance(items, list):
        raise UserError(f'{file}: "{key}" is {brief(items)}; expected a list')
    return items


def indexed(items: Iterable[Any], key: str, where: str) -> dict[str, dict[str, Any]]:
    """Objects by what a key of theirs names them.

    Args:
        items: from a document.
        key: of their names, texts or whole numbers.
        where: the file and what they are, for messages ("a.json, annotation").

    Raises:
        UserError: one is no object, has no such name, or has the name of another.
    """
    found: dict[str, dict[str, Any]] = {}
    again = []
    for number, item in enumerate(items, 1):
        try:
            name = identity(checked_object(item).get(key), f"the {key}")
        except ValueError as error:
            raise UserError(f"{where} {number}: {error}") from None
        if name in found:
            again.append(name)
        found[name] = item
    if again:
        raise UserError(
            f"{where}s: {len(again):,} have the {key} of an earlier one, the first is "
            f"{brief(again[0])}; keep one of each"
        )
    return found


def numbered(items: Iterable[Any], where: str) -> Iterator[tuple[str, Any]]:
    """Where each thing of a list stands ("a.json, image 3"), and the thing."""
    return ((f"{where} {number}", item) for number, item in enumerate(items, 1))


def named(items: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Where each value of an object stands, and the value; its name there is its question_id."""
    for name, item in items.items():
        known = item | {"question_id": name} if isinstance(item, dict) else item
        yield f"{where} {brief(name)}", known


def each(
    items: Iterable[tuple[str, Any]], convert: Callable[[dict[str, Any]], list[dict[str, Any]]]
) -> Iterator[RawRecord]:
    """The records that parts of a document become; of a broken part the ValueError that says why.

    Args:
        items: where each part stands, and the part.
        convert: an object to its records.
    """
    for origin, item in items:
        try:
            records: list[Any] = convert(checked_object(item))
        except ValueError as error:
            records = [error]
        for record in records:
            yield origin, record


def of_split(
    items: Iterable[tuple[str, Any]], split_of: Callable[[Any], Any], file: str, reading: Reading
) -> list[tuple[str, Any]]:
    """The parts of a document that belong to the split that is read; others count in the notes.

    A file that holds training and test data at once would else be trained on whole.

    Args:
        items: where each stands, and the part.
        split_of: an object's split, a text. Where it is none the part stays, to be refused by name.
        file: for messages.
        reading: says which split; where it does not: train, or the only one.

    Raises:
        UserError: nothing belongs to that split.
    """
    reading.has_splits = True
    items = list(items)
    splits = [split_of(item) if isinstance(item, dict) else None for _, item in items]
    sizes = Counter(split for split in splits if isinstance(split, str))
    wanted = reading.split or (next(iter(sizes)) if len(sizes) == 1 else "train")
    if sizes and wanted not in sizes:
        there = ", ".join(brief(split, 20) for split in list(sizes)[:10])
        raise UserError(f"{file} has no split {wanted!r}; it has {there}: give PATH:SPLIT")
    if others := sum(sizes.values()) - sizes[wanted]:
        reading.notes[f"of other splits than {wanted}, left out (PATH:SPLIT reads them)"] += others
    rows = zip(items, splits, strict=True)
    return [item for item, split in rows if split == wanted or not isinstance(split, str)]

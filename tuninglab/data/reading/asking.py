"""Questions about pictures with their answers: how every such set becomes a sample."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tuninglab.data.reading.fields import MEANING, as_text, given, identity, refuse_more, text_of
from tuninglab.data.reading.found import Format, Reading
from tuninglab.data.sample import ImageSource, Sample, StoredPicture, brief, checked_text
from tuninglab.data.special_tokens import IMAGE_TOKEN

ID_KEYS = ("question_id", "questionId", "id")
KIND_KEYS = ("kind", "question_type", "answer_type")


def asked(
    question: str,
    answers: Sequence[str],
    images: Sequence[ImageSource],
    origin: str,
    kind: str | None = None,
    id: str | None = None,
    learned: str | None = None,
) -> Sample:
    """A sample that shows its pictures, then asks; the usual answer is learned.

    Args:
        question: after the pictures; empty: they alone are the question.
        answers: all that are right.
        images: names, bytes or stored pictures.
        origin: where the record stands.
        kind: the type of question.
        id: the data's own name of the question.
        learned: of the answers; None: the most frequent, of equally frequent ones the first, as the
            rules of VQA have it, none that is blank.

    Raises:
        ValueError: no answer says anything, or the question has marks of pictures.
    """
    if learned is None:
        frequent = Counter(answer for answer in answers if answer.strip()).most_common(1)
        if not frequent:
            raise ValueError("all answers are empty; write one or drop the record")
        ((learned, _),) = frequent
    if IMAGE_TOKEN in question:
        raise ValueError(
            f"the question holds an {IMAGE_TOKEN} mark, but in this format pictures stand before "
            'it; remove the mark, or write the record as "messages"'
        )
    user = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
    messages = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": [{"type": "text", "text": learned}]},
    ]
    return Sample(messages, list(images), origin, kind=kind, id=id, answers=tuple(answers))


def answers_of(record: Mapping[str, Any], *keys: str) -> list[str]:
    """The answers under the first of these keys: a text, a list of them, or VQA's objects.

    Raises:
        ValueError: there are none, or one is no text.
    """
    value = given(record, *keys)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not values:
        raise ValueError(
            "there is no answer; questions of a test split have none and cannot be learned or "
            "scored: use a split with answers"
        )
    texts = []
    for number, item in enumerate(values, 1):
        text = item.get("answer") if isinstance(item, dict) else item
        if not isinstance(text, str):
            what = "missing" if text is None else brief(text)
            raise ValueError(f"answer {number} is {what}; expected a text")
        texts.append(checked_text(text))
    return texts


def pictures_of(record: Mapping[str, Any]) -> list[ImageSource]:
    """The pictures under `image` or `images`: names, bytes, or a table's {"bytes", "path"}.

    Raises:
        ValueError: both keys are there, or a picture is none of these.
    """
    if given(record, "image") is not None and given(record, "images") is not None:
        raise ValueError('the record has both "image" and "images"; keep one of the two')
    value = given(record, "image", "images")
    values = value if isinstance(value, list) else [] if value is None else [value]
    pictures = []
    for number, picture in enumerate(values, 1):
        if isinstance(picture, dict):
            picture = given(picture, "bytes", "path")
        if isinstance(picture, str):
            as_text(picture, f"the name of picture {number}")
        elif not isinstance(picture, bytes | StoredPicture):
            raise ValueError(f"picture {number} is {brief(picture)}; expected the name of a file")
        pictures.append(picture)
    return pictures


def id_of(record: Mapping[str, Any]) -> str | None:
    """What the record calls itself.

    Raises:
        ValueError: by no text and no whole number.
    """
    value = given(record, *ID_KEYS)
    return None if value is None else identity(value, "the id")


def kind_of(record: Mapping[str, Any], *keys: str) -> str | None:
    """The type of question, where the record says one.

    Raises:
        ValueError: by no text.
    """
    value = given(record, *keys)
    return None if value is None else as_text(value, f"the {keys[0]}")


def _fits(record: Mapping[str, Any]) -> bool:
    keys = record.keys()
    # Without a set's own names, or with more to say, it is anybody's record of a question.
    own = bool(keys & {"question_id", "dataset", "answer_type"}) and not keys & MEANING
    there = "question" in keys and bool(keys & {"answer", "answers"})
    return own and there and bool(keys & {"image", "images"}) and not keys & {"choices", "options"}


def _samples(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    refuse_more(record)
    answers = answers_of(record, "answers", "answer")
    # Where both stand, the single one is the set's own choice among the others.
    both = given(record, "answers") is not None and given(record, "answer") is not None
    learned = text_of(record, "answer") if both else None
    pictures, kind = pictures_of(record), kind_of(record, *KIND_KEYS)
    question = text_of(record, "question")
    return [asked(question, answers, pictures, origin, kind, id_of(record), learned)]


# What the documents of questions become, and BLIP's own flat lists, which have the same keys.
ASKED = Format("vqa_rows", "questions about pictures (BLIP's VQA lists)", _fits, _samples)

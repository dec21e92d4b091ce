"""Multiple choice: A-OKVQA, ScienceQA, AI2D.

The options stand in the question, one a line, as "A. red"; the letter is what is learned, which is
how LLaVA was tuned on A-OKVQA and how lmms-eval scores ScienceQA. `Sample.answers` holds the letter
and then the option's text, so that scores may accept both.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from string import ascii_uppercase
from typing import Any

from tuninglab.data.reading.fields import (
    alone,
    as_text,
    each,
    first_of,
    given,
    named,
    of_split,
    text_of,
    texts_of,
    whole,
)
from tuninglab.data.reading.found import Document, Format, RawRecord, Reading
from tuninglab.data.reading.questions import KIND_KEYS
from tuninglab.data.reading.records import listed_pictures, majority, name_of
from tuninglab.data.reading.single_turns import single_turn
from tuninglab.data.sample import ImageSource, Sample, brief

NO_ANSWER = "there is no answer; questions of a test split have none: use a split with answers"


def multiple_choice(
    record: Mapping[str, Any],
    options: list[str],
    right: int,
    images: list[ImageSource],
    origin: str,
    kind: str | None = None,
) -> Sample:
    """A question whose options are lettered below it; the letter of the right one is learned.

    Args:
        record: its `question`, and `hint` where it has one, which then stands before as context.
        options: at most 26.
        right: the number of the right one, from 0.
        images: shown first.
        origin: where the record stands.
        kind: the type of question.

    Raises:
        ValueError: the question is missing, or there are more options than letters, or none right.
    """
    if len(options) > len(ascii_uppercase):
        raise ValueError(f"the question has {len(options)} options; at most 26 have letters")
    if right >= len(options):
        raise ValueError(f"the answer is option {right}, counted from 0, of {len(options)}")
    lines = [f"{ascii_uppercase[number]}. {option}" for number, option in enumerate(options)]
    hint = given(record, "hint")
    context = [] if hint in (None, "") else [f"Context: {text_of(record, 'hint')}"]
    lines = [*context, text_of(record, "question"), *lines]
    answers = [ascii_uppercase[right], as_text(options[right], "the text of the right option")]
    sample = single_turn(record, "\n".join(lines), answers[0], origin, images, answers, kind)
    sample.options = tuple(options)
    return sample


def _is_choice(record: Mapping[str, Any]) -> bool:
    return "question" in record and bool(record.keys() & {"choices", "options"})


def _choices(
    record: dict[str, Any], origin: str, reading: Reading, numbered: bool = False
) -> list[Sample]:
    options = texts_of(record, "choices", "options")
    right = _right_option(given(record, "answer"), options, numbered)
    kind = name_of(record, (*KIND_KEYS, "subject"))
    return [multiple_choice(record, options, right, listed_pictures(record), origin, kind)]


def _right_option(answer: Any, options: list[str], numbered: bool) -> int:
    """The right option's number: the answer is one from 0, a letter, or an option's text.

    Args:
        answer: of the record.
        options: to choose from.
        numbered: digits in a text are a number, also where an option says the same.
    """
    if answer is None:
        raise ValueError(NO_ANSWER)
    if not isinstance(answer, str):
        return whole(answer, "the answer")
    meant = {number for number, option in enumerate(options) if option == answer}
    letters = ascii_uppercase[: len(options)]
    if answer in letters and len(answer) == 1:
        meant.add(letters.index(answer))
    if answer.isdecimal() and len(answer) < 3 and int(answer) < len(options):
        meant = {int(answer)} if numbered else meant | {int(answer)}
    if len(meant) != 1:
        what = "fits several options" if meant else "is no option"
        raise ValueError(
            f"the answer {brief(answer)} {what}; give the option's number from 0 (if all answers "
            "are numbers written as text: --format ai2d_rows)"
        )
    return meant.pop()


def _is_aokvqa(record: Mapping[str, Any]) -> bool:
    keys = record.keys()
    # Its test split has no answer under any name.
    own = "correct_choice_idx" in keys or ("image_id" in keys and "answer" not in keys)
    return {"question", "choices"} <= keys and own


def _aokvqa(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    right = record.get("correct_choice_idx")
    if right is None:
        raise ValueError(NO_ANSWER)
    options = texts_of(record, "choices")
    images = _aokvqa_pictures(record, reading)
    return [multiple_choice(record, options, whole(right, "correct_choice_idx"), images, origin)]


def _aokvqa_direct(record: dict[str, Any], origin: str, reading: Reading) -> list[Sample]:
    """Without options, the usual one of ten answers learned, as the set's second task has it."""
    if record.get("difficult_direct_answer") is True:  # the official score leaves them out, too
        reading.notes["A-OKVQA questions without a usual direct answer, left out"] += 1
        return []
    if record.get("direct_answers") is None:
        raise ValueError(NO_ANSWER)
    answers, images = texts_of(record, "direct_answers"), _aokvqa_pictures(record, reading)
    question = text_of(record, "question")
    return [single_turn(record, question, majority(answers), origin, images, answers)]


def _aokvqa_pictures(record: Mapping[str, Any], reading: Reading) -> list[ImageSource]:
    """Its own, in a table; else the one of COCO 2017 that the record names."""
    if pictures := listed_pictures(record):
        return pictures
    name = f"{whole(record.get('image_id'), 'the image_id'):012d}.jpg"
    split = record.get("split")
    folders = (split,) if split in ("train", "val", "test") else ("train", "val", "test")
    return [reading.existing([*(f"{folder}2017/{name}" for folder in folders), name])]


def _is_scienceqa(documents: Sequence[Any]) -> bool:
    return {"question", "choices", "split"} <= first_of(alone(documents)).keys()


def _scienceqa(documents: Sequence[Any], file: str, reading: Reading) -> Iterator[RawRecord]:
    """Problems with their pictures' names; about half have none. Each names its split itself.

    The lecture and the solution are explanations and not learned.
    """

    def convert(problem: dict[str, Any]) -> list[dict[str, Any]]:
        folder = f"{text_of(problem, 'split')}/{problem['question_id']}"
        if problem.get("image") is None:
            return [problem]
        place = f"{folder}/{text_of(problem, 'image')}"
        return [problem | {"image": reading.existing([place, f"images/{place}"])}]

    items = named(documents[0], f"{file}, problem")
    return each(of_split(items, lambda problem: problem.get("split"), file, reading), convert)


def _is_ai2d(documents: Sequence[Any]) -> bool:
    return bool(documents) and all(
        isinstance(document, dict)
        and {"imageName", "questions"} <= document.keys()
        and isinstance(document["questions"], dict)
        for document in documents
    )


def _ai2d(documents: Sequence[Any], file: str, reading: Reading) -> Iterator[RawRecord]:
    """The questions about each picture; a file of the set is about one."""

    def convert(question: dict[str, Any]) -> list[dict[str, Any]]:
        """A question as one record."""
        image = text_of(question, "imageName")
        return [
            {
                "image": reading.existing([image, f"images/{image}"]),
                "question": question["question_id"],
                "options": question.get("answerTexts"),
                "answer": question.get("correctAnswer"),
                "id": question.get("questionId"),
            }
        ]

    items = (
        (origin, item | {"imageName": document["imageName"]} if isinstance(item, dict) else item)
        for document in documents
        for origin, item in named(document["questions"], f"{file}, question")
    )
    return each(items, convert)


AOKVQA_KEYS = ("image_id", "question", "choices", "correct_choice_idx", "direct_answers")
CHOICE_KEYS = ("question", "choices", "options", "answer")
AOKVQA = Format("aokvqa", "A-OKVQA, multiple choice", _is_aokvqa, _aokvqa, AOKVQA_KEYS)
AOKVQA_DIRECT = Format(
    "aokvqa_direct", "A-OKVQA, direct answers", _is_aokvqa, _aokvqa_direct, AOKVQA_KEYS
)
CHOICES = Format(
    "choices", "questions with options (ScienceQA, AI2D)", _is_choice, _choices, CHOICE_KEYS
)
AI2D_ROWS = Format(
    "ai2d_rows",
    "AI2D's table (numbers as text)",
    _is_choice,
    partial(_choices, numbered=True),
    CHOICE_KEYS,
)
SCIENCEQA = Document("scienceqa", "ScienceQA problems", _is_scienceqa, _scienceqa)
AI2D = Document("ai2d", "AI2D questions", _is_ai2d, _ai2d)

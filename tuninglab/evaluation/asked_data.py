"""Questions of files: every set read and checked as a training reads it, each question once."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuninglab.config.data import DataPart, split_path
from tuninglab.data.reading.opening import Wishes, limited, open_stored, settle, tell
from tuninglab.data.reading.store import table_of
from tuninglab.data.sample import brief
from tuninglab.data.sources import Source, fingerprint
from tuninglab.errors import UserError
from tuninglab.evaluation.questions import Question, asked_once, question_of

MOST_SETS_NAMED = 3


@dataclass
class AskedData:
    """What is asked.

    Args:
        name: of the files, for people.
        what: formats of the records, and kinds of set, by how many records have them.
        questions: in the order of the data, each with an id of its own.
        content: a sha256 over the data, wherever it lies.
    """

    name: str
    what: Counter[str]
    questions: list[Question]
    content: str


def read_questions(parts: Sequence[DataPart], wishes: Wishes, limit: int | None) -> AskedData:
    """Read the sets and take each record's last question.

    Args:
        parts: the sets.
        wishes: how they are read; its seed draws.
        limit: at most so many questions, drawn; None: all.

    Raises:
        UserError: a set cannot be read, a record is wrong (all are checked), or two questions have
            one id.
    """
    sources: list[tuple[str, Source]] = []
    what: Counter[str] = Counter()
    for part in parts:
        stored, about = open_stored(part, wishes)
        tell(stored, about)
        skip, total = wishes.skip_bad_records, about["records"]
        settle(stored.label, stored.problems, skip, about["bad"], total)
        what.update(about["formats"])
        if about["what"]:
            what[about["what"]] += total
        sources.append((Path(split_path(part.path)[0][0]).name, limited(stored, part, wishes.seed)))
    names = [name for name, _ in sources]
    data = AskedData(
        " + ".join(names[:MOST_SETS_NAMED]) + " + ..." * (len(names) > MOST_SETS_NAMED),
        what,
        drawn(asked_once(_questions(sources)), limit, wishes.seed),
        fingerprint([source.content for _, source in sources]),
    )
    check_ids(data.questions)
    return data


def drawn(questions: list[Question], limit: int | None, seed: int) -> list[Question]:
    """At most so many of the questions, in their order; which ones, the seed decides."""
    if limit is None or limit >= len(questions):
        return questions
    numbers = np.random.default_rng(seed).permutation(len(questions))[:limit]
    return [questions[number] for number in np.sort(numbers).tolist()]


def check_ids(questions: Sequence[Question]) -> None:
    """Pass if each question has an id of its own.

    Raises:
        UserError: two have the same, or there is no question.
    """
    if not questions:
        raise UserError("There is no question to score in the data.")
    first: dict[str, Question] = {}
    twice = []
    for question in questions:
        before = first.setdefault(str(question.id), question)
        if before is not question:
            twice.append((question, before))
    if twice:
        question, before = twice[0]
        raise UserError(
            f"{question.sample.origin}: its id {brief(question.id)} is that of "
            f"{before.sample.origin} too; predictions are told by it ({len(twice):,} such). Give "
            "every question an id of its own, or none"
        )


def _questions(sources: Sequence[tuple[str, Source]]) -> Iterator[Question]:
    for name, source in sources:
        table = table_of(source)
        numbers = range(len(source)) if table is None else table.records.tolist()
        many = Counter(numbers)
        seen: Counter[int] = Counter()
        for sample, number in zip(source, numbers, strict=True):
            seen[number] += 1
            # Counted from 1, as messages count records; a record may ask several questions.
            own = number + 1 if many[number] == 1 else f"{number + 1}.{seen[number]}"
            yield question_of(sample, own if len(sources) == 1 else f"{name}:{own}")

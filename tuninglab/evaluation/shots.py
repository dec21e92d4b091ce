"""Few-shot: examples before a question, drawn for it alone, as earlier turns of the dialogue."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from tuninglab.data.looking import content_digest
from tuninglab.data.sample import ImageSource, Message, Sample
from tuninglab.errors import UserError
from tuninglab.evaluation.asking import Dialogue
from tuninglab.evaluation.questions import Question, question_of

# Rows that examples are drawn from, as in OpenFlamingo's evaluation (query_set_size).
QUERY_SET = 2048


@dataclass(frozen=True)
class Shown:
    """What a question shows and says, to tell whether another one may stand beside it.

    Args:
        turns: what is said before the answer.
        pictures: sha256 of each, in order.
    """

    turns: list[Message]
    pictures: tuple[bytes, ...]

    def shares(self, other: "Shown") -> bool:
        """Whether both show a picture, or without pictures say the same."""
        if self.pictures or other.pictures:
            return not set(self.pictures).isdisjoint(other.pictures)
        return self.turns == other.turns


def shown_of(question: Question) -> Shown:
    """What a question shows and says.

    Raises:
        UserError: a picture cannot be read.
    """
    pictures = tuple(content_digest(image) for image in question.sample.images)
    return Shown(question.sample.messages[:-1], pictures)


class Pool(Sequence[Question]):
    """Records as questions with their answers, each made when it is asked for.

    Args:
        samples: of the shots data.
        rows: numbers of those that examples come from; None: all.
    """

    def __init__(self, samples: Sequence[Sample], rows: Sequence[int] | None = None):
        self.samples = samples
        self.rows = range(len(samples)) if rows is None else rows
        self._shown: dict[int, Shown] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Question:  # type: ignore[override]
        row = self.rows[index]
        return question_of(self.samples[row], str(row + 1))

    def shown(self, index: int) -> Shown:
        """What a record shows and says; its pictures are read once.

        Raises:
            UserError: a picture cannot be read.
        """
        if index not in self._shown:
            self._shown[index] = shown_of(self[index])
        return self._shown[index]


def query_set(samples: Sequence[Sample], seed: int, size: int = QUERY_SET) -> Pool:
    """At most so many records, drawn by the seed, in the order of the data."""
    drawn = np.random.default_rng(seed).permutation(len(samples))[:size]
    return Pool(samples, np.sort(drawn).tolist())


class Examples(ABC):
    """Which records of a pool stand before a question: a function of that question alone."""

    def __init__(self, pool: Pool):
        self.pool = pool

    @abstractmethod
    def rows(self, question: Question, count: int) -> list[int]:
        """Numbers of so many records of the pool or more; the first stands next to the question.

        Raises:
            UserError: fewer may stand before it; or a picture cannot be read.
        """

    def of(self, question: Question, count: int) -> list[Question]:
        """So many records in the order in which they stand.

        The prompt of fewer is the end of that of more. None shows a picture of the question, or
        asks the same of the same pictures as another one.

        Raises:
            UserError: as `rows`.
        """
        if not count:
            return []
        return [self.pool[row] for row in reversed(self.rows(question, count)[:count])]


def usable(pool: Pool, question: Question, order: Iterable[int], count: int) -> list[int]:
    """The first so many records of an order that may stand before a question.

    Raises:
        UserError: there are fewer; or a picture cannot be read.
    """
    own = shown_of(question)
    taken: list[Shown] = []

    def may_stand(row: int) -> bool:
        shown = pool.shown(row)
        if own.shares(shown) or shown in taken:
            return False
        taken.append(shown)
        return True

    rows = list(islice(filter(may_stand, order), count))
    if len(rows) < count:
        raise UserError(
            f"{question.sample.origin}: {count} examples are to stand before it, and of "
            f"{len(pool):,} records only {len(rows)} may: those that show its own picture, or ask "
            "the same as another, are left out. Give more --shots_data, or fewer --shots."
        )
    return rows


class Drawn(Examples):
    """Examples drawn by (seed, the question's id).

    OpenFlamingo draws from one running stream, where the examples of a question depend on those
    asked before it, on the batch size and on the number of processes. Here they do not.

    Args:
        pool: of `query_set`.
        seed: of the draw.
    """

    def __init__(self, pool: Pool, seed: int):
        super().__init__(pool)
        self.seed = seed
        self._drawn: dict[str, list[int]] = {}

    def rows(self, question: Question, count: int) -> list[int]:
        """See `Examples`."""
        known = self._drawn.get(str(question.id), [])
        if len(known) < count:
            digest = hashlib.sha256(f"{self.seed} {question.id}".encode()).digest()
            order = np.random.default_rng(int.from_bytes(digest)).permutation(len(self.pool))
            known = self._drawn[str(question.id)] = usable(
                self.pool, question, order.tolist(), count
            )
        return known


class FewShot(Dialogue):
    """Examples before each question, as earlier turns of its dialogue in the processor's prompt.

    In `openflamingo-vqa` and `openflamingo-caption` this is the text of OpenFlamingo's evaluation.

    Args:
        processor: of the model.
        examples: where they come from.
        shots: how many stand before a question; with 0 this is `Dialogue`.
    """

    def __init__(self, processor: Any, examples: Examples, shots: int):
        super().__init__(processor)
        self.examples, self.shots = examples, shots

    def turns(self, question: Question) -> list[Message]:
        """See `Dialogue`; a system message stands once, before all.

        Raises:
            UserError: there are too few examples, or one has another system message.
        """
        system, own = _system_apart(question.sample.messages[:-1])
        turns = system
        for example in self.examples.of(question, self.shots):
            other, dialogue = _system_apart(example.sample.messages)
            if other != system:
                raise UserError(
                    f"{question.sample.origin}: its system message is not that of its example "
                    f"({example.sample.origin}), and a prompt has place for one. Give --shots_data "
                    "with the same, or take it out of both."
                )
            turns = turns + dialogue
        return turns + own

    def images(self, question: Question, own: Sequence[ImageSource]) -> list[ImageSource]:
        """See `Asking`."""
        examples = self.examples.of(question, self.shots)
        return [*(image for one in examples for image in one.sample.images), *own]


def _system_apart(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """The system message, if there is one, and the rest."""
    first = 1 if messages and messages[0]["role"] == "system" else 0
    return list(messages[:first]), list(messages[first:])

"""What a data set asks: each record's last question once, by the name that the data gives it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase

from PIL import Image

from tuninglab.data.sample import ImageSource, Sample, count_images, plain_text
from tuninglab.data.sources import fingerprint
from tuninglab.evaluation.metrics.metric import Scored


@dataclass(frozen=True)
class Question:
    """A question that is scored.

    Args:
        id: the data's own (question_id, id), or the record's number from 1; as text unlike all
            others.
        sample: the dialogue; its last turn is the learned answer, which the model does not see.
        text: of the last user message, without pictures.
        answers: all right ones, at least one.
        kind: the type of question, where the data has one.
        group: what the record belongs to besides, where the data says so.
        options: what there is to choose from; () if anything.
        lettered: whether the question names the options by letters.
    """

    id: str | int
    sample: Sample
    text: str
    answers: Sequence[str]
    kind: str | None = None
    group: str | None = None
    options: Sequence[str] = ()
    lettered: bool = False

    @property
    def pictures(self) -> int:
        """How many the dialogue has."""
        return count_images(self.sample.messages)

    def shown(self, images: Sequence) -> Sample:
        """The same dialogue with other pictures, as many."""
        return replace(self.sample, images=list(images))

    def scored(self, prediction: str, share: float | None = None) -> Scored:
        """A prediction beside what is right."""
        return Scored(prediction, self.answers, self.options, self.lettered, share)


def question_of(sample: Sample, name: str | int) -> Question:
    """The last question of a dialogue, under a name.

    Args:
        sample: any.
        name: where the data has none.
    """
    learned = plain_text(sample.messages[-1]).strip()
    answers = tuple(sample.answers) or (learned,)
    options = tuple(sample.options)
    text = plain_text(sample.messages[-2]).strip()
    known = (text, answers, sample.kind, sample.group, options, _is_lettered(options, answers))
    return Question(name if sample.id is None else sample.id, sample, *known)


def _is_lettered(options: Sequence[str], answers: Sequence[str]) -> bool:
    # Multiple choice answers with the letter, then the text; a letter may be an option's text too.
    letters = ascii_uppercase[: len(options)]
    named = len(answers) == 2 and len(answers[0]) == 1 and answers[0] in letters
    return named and options[letters.index(answers[0])] == answers[1]


def asked_once(questions: Iterable[Question]) -> list[Question]:
    """The questions in their order; of those that ask the same of the same pictures the first.

    A set of captions has a sample for each caption of a picture, each with all of them as answers.
    """
    kept: list[Question] = []
    known: set[str] = set()
    for question in questions:
        if len(question.answers) > 1:
            asked = (question.sample.id, question.sample.messages[:-1], question.answers)
            key = fingerprint([*asked, *map(_named, question.sample.images)])
            if key in known:
                continue
            known.add(key)
        kept.append(question)
    return kept


def _named(image: ImageSource) -> object:
    # Pictures of files are told by where they lie, others by being one.
    return id(image) if isinstance(image, bytes | Image.Image) else image

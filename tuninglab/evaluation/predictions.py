"""predictions.jsonl: what was answered, kept batch by batch, and files of answers of others."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tuninglab.data.reading.fields import identity
from tuninglab.data.reading.json_files import read_records
from tuninglab.data.sample import brief
from tuninglab.disk import write_whole
from tuninglab.errors import UserError, WorkError
from tuninglab.evaluation.conditions import ASKED
from tuninglab.evaluation.questions import Question

NAME = "predictions.jsonl"
# Under which a line has the answer to the question as it was asked; other conditions have a key of
# their own name.
PREDICTION = "prediction"
# Of so many candidates a line has the probabilities: of a thousand they would be most of the file.
MOST_PROBABILITIES = 100
# No line of ours is longer; what is, is cut and so is no JSON.
LONGEST_LINE = 2**24
# The names that files of answers have for the question and for the answer: ours, VQA's, COCO's.
IDS = ("id", "question_id", "image_id")
PREDICTIONS = ("prediction", "answer", "caption")


class Answered(NamedTuple):
    """What a model answered to one question.

    Attributes:
        prompt_sha: of the prompt's tokens, by `prompt_sha`.
        texts: by condition; "asked" is the question as it is.
        probabilities: by condition, of each candidate among all, in their order; {} where answers
            were generated, or there are more than MOST_PROBABILITIES.
    """

    prompt_sha: str
    texts: Mapping[str, str]
    probabilities: Mapping[str, Sequence[float]]


class PredictionsFile:
    """The predictions.jsonl of a folder, which grows while several processes answer.

    The first process adds to predictions.jsonl, process r to predictions.rank-r.jsonl beside it.
    A line is written when its batch is done and handed to the system, so a process that is killed
    loses the batch at hand; a machine that loses power perhaps some lines more, which are answered
    again.

    Args:
        folder: of the evaluation; it is made if need be.
        rank: number of this process.
    """

    def __init__(self, folder: Path, rank: int = 0):
        self.path = folder / NAME
        self._own = folder / f"predictions.rank-{rank}.jsonl" if rank else self.path

    def read(self) -> list[dict[str, Any]]:
        """The lines of all processes that are whole; what cannot be read is left out."""
        found = []
        for path in [self.path, *self._of_others()]:
            if path.is_file():
                with path.open("rb") as file:
                    lines = iter(lambda f=file: f.readline(LONGEST_LINE), b"")
                    found += [line for line in map(_parsed, lines) if line is not None]
        return found

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Replace what all processes have written; one process does so while none appends.

        Raises:
            WorkError: the disk is full.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, "".join(map(_dumped, lines)))
        for path in self._of_others():
            path.unlink()

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add the lines of a batch that is done.

        Raises:
            WorkError: the disk is full.
        """
        self._own.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._own.open("a", encoding="utf-8") as file:
                file.write("".join(map(_dumped, lines)))
        except OSError as error:
            raise WorkError(
                f"{self._own} could not be written: {error}. Free some space and start again: what "
                "was answered before is kept."
            ) from error

    def _of_others(self) -> Iterator[Path]:
        return iter(sorted(self.path.parent.glob("predictions.rank-*.jsonl")))


def prompt_sha(ids: Sequence[int]) -> str:
    """The SHA-256 of a prompt's token ids, each as four bytes, the lowest first; in hexadecimal."""
    return hashlib.sha256(np.asarray(ids, dtype="<u4").tobytes()).hexdigest()


def line_of(
    question: Question, answered: Answered, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A line of predictions.jsonl.

    Args:
        question: that was asked.
        answered: what the model said.
        more: further keys, to stand after the answers: `score` ...
    """
    line = {"id": question.id, "prompt_sha": answered.prompt_sha}
    line[PREDICTION] = answered.texts[ASKED]
    others = {name: text for name, text in answered.texts.items() if name != ASKED}
    ranked = {"probabilities": dict(answered.probabilities)} if answered.probabilities else {}
    return {**line, "answers": list(question.answers), **(more or {}), **others, **ranked}


def answered_of(
    line: Mapping[str, Any], prompt_sha: str, conditions: Iterable[str], candidates: int
) -> Answered | None:
    """What a line says was answered; None where that is not all that is wanted.

    Args:
        line: of predictions.jsonl, perhaps of another version or damaged.
        prompt_sha: of the question as it is asked now.
        conditions: under which it is asked.
        candidates: how many probabilities there are of each condition; 0: none.
    """
    texts = {name: line.get(PREDICTION if name == ASKED else name) for name in conditions}
    if line.get("prompt_sha") != prompt_sha or not all(isinstance(t, str) for t in texts.values()):
        return None
    ranked = line.get("probabilities", {})
    wanted = set(texts) if candidates else set()
    if not isinstance(ranked, dict) or ranked.keys() != wanted:
        return None
    if not all(_are_probabilities(row, candidates) for row in ranked.values()):
        return None
    ordered = {name: ranked[name] for name in texts if name in ranked}
    return Answered(prompt_sha, texts, ordered)  # pyright: ignore[reportArgumentType]


def read_predictions(path: Path, questions: Sequence[Question]) -> list[str]:
    """Answers from a file, in the order of the questions.

    JSON lines or a JSON list of objects: ours (`id`, `prediction`), and the result files of VQA
    (`question_id`, `answer`) and COCO captions (`image_id`, `caption`). An id is a text or a whole
    number; other keys are not read.

    Raises:
        UserError: the file cannot be read, a record lacks one of the two, an id is there twice, or
            the ids are not those of the questions.
    """
    said: dict[str, str] = {}
    for origin, record in read_records(path):
        try:
            name, prediction = _prediction(record)
            if name in said:
                raise ValueError(f"the id {brief(name)} is there twice; keep one")
        except ValueError as error:
            raise UserError(f"{origin}: {error}") from None
        said[name] = prediction
    asked = [str(question.id) for question in questions]
    missing, strange = [i for i in asked if i not in said], sorted(said.keys() - set(asked))
    if missing:
        cause = "Is it of another data file?" if strange else "Did it stop early?"
        raise UserError(
            f"{path} lacks an answer to {len(missing):,} of {len(asked):,} questions, the first is "
            f"{brief(missing[0])}. {cause}"
        )
    if strange:
        raise UserError(
            f"{path} answers {len(strange):,} questions that the data does not ask, one is "
            f"{brief(strange[0])}. Is it of another data file?"
        )
    return [said[name] for name in asked]


def _prediction(record: Any) -> tuple[str, str]:
    """The id and the prediction of a record.

    Raises:
        ValueError: it has none; it names what is missing.
    """
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError(f"{brief(record)} is no object; expected an id and a prediction")
    key = next((key for key in IDS if key in record), IDS[0])
    name = identity(record.get(key), f"the {key}")
    key = next((key for key in PREDICTIONS if key in record), PREDICTIONS[0])
    prediction = record.get(key)
    if not isinstance(prediction, str):
        shown = "missing" if key not in record else brief(prediction)
        raise ValueError(f"the {key} is {shown}; expected a text")
    return name, prediction


def _dumped(line: Mapping[str, Any]) -> str:
    # ASCII: half a letter cannot be lost at a cut, and U+2028 ends no line for anybody.
    return json.dumps(line, allow_nan=False) + "\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _are_probabilities(row: Any, count: int) -> bool:
    return isinstance(row, list) and len(row) == count and all(isinstance(p, float) for p in row)

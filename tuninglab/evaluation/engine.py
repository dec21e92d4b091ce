"""A model answers many questions: in batches of like length, on all processes, in several sittings.

A batch is what is computed and kept together. Which questions it has depends on the questions and
its size alone, so that answers are the same, to the last bit, however many processes share them
and wherever they were interrupted. Another size of batch pads prompts otherwise, which changes what
is computed in the last bits only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object

from tuninglab.data.sample import brief
from tuninglab.errors import UserError
from tuninglab.evaluation.answerer import Answerer, BatchPixels, Row
from tuninglab.evaluation.answers import evaluation_mode, make_batches
from tuninglab.evaluation.asking import Asking
from tuninglab.evaluation.conditions import Condition
from tuninglab.evaluation.predictions import (
    MOST_PROBABILITIES,
    Answered,
    PredictionsFile,
    answered_of,
    line_of,
    prompt_sha,
)
from tuninglab.evaluation.questions import Question
from tuninglab.progress import working

Item = TypeVar("Item")
Made = TypeVar("Made")

# By name: "asked", "blank", "shuffled".
Conditions = Mapping[str, Condition]


class Prompt(NamedTuple):
    """What is to be known of a question's prompt before any is computed."""

    tokens: int
    sha: str


@dataclass(frozen=True)
class _Work:
    """The questions, and all that decides what is asked."""

    answerer: Answerer
    questions: Sequence[Question]
    asking: Asking
    conditions: Conditions
    candidates: Sequence[Sequence[str]] | None
    # By their texts: a thousand names of classes are tokenized once.
    candidate_ids: dict[tuple[str, ...], list[list[int]]] = field(default_factory=dict)

    def candidates_of(self, number: int) -> list[list[int]]:
        """The tokens of the candidates of a question; [] where its answer is generated."""
        if self.candidates is None:
            return []
        texts = tuple(self.candidates[number])
        if texts not in self.candidate_ids:
            self.candidate_ids[texts] = self.asking.candidates(self.questions[number], texts)
        return self.candidate_ids[texts]

    def read(self, prompts: Sequence[tuple[int, list[int]]]) -> dict[str, list[Row]]:
        """The rows of a batch (number of the question, its ids) by condition, pictures decoded."""
        pixels = BatchPixels(self.answerer.processor.image_processor)
        rows: dict[str, list[Row]] = {name: [] for name in self.conditions}
        for number, ids in prompts:
            question = self.questions[number]
            row = {"sample_id": question.sample.origin, "input_ids": ids}
            for name, pictures in self.conditions.items():
                try:
                    images = self.asking.images(question, pictures(number))
                    rows[name].append(row | {"pixel_values": pixels.of(images)})
                except UserError as error:
                    raise UserError(f"{question.sample.origin}: {error}") from error
        return rows

    def answer(self, numbers: Sequence[int], rows: Mapping[str, list[Row]]) -> list[Answered]:
        """What the model answers to a batch under all conditions, which share their pictures."""
        texts: list[dict[str, str]] = [{} for _ in numbers]
        chances: list[dict[str, list[float]]] = [{} for _ in numbers]
        for name, some in rows.items():
            if self.candidates is None:
                for place, text in enumerate(self.answerer.generated(some)):
                    texts[place][name] = self.asking.said(text)
                continue
            ids = [self.candidates_of(number) for number in numbers]
            for place, row in enumerate(self.answerer.ranked(some, ids)):
                texts[place][name] = self.candidates[numbers[place]][int(np.argmax(row))]
                if len(row) <= MOST_PROBABILITIES:
                    chances[place][name] = row
        shas = [prompt_sha(row["input_ids"]) for row in next(iter(rows.values()))]
        return [Answered(*known) for known in zip(shas, texts, chances, strict=True)]


def answer_all(
    answerer: Answerer,
    questions: Sequence[Question],
    asking: Asking,
    conditions: Conditions,
    file: PredictionsFile,
    candidates: Sequence[Sequence[str]] | None = None,
) -> list[Answered]:
    """What a model answers to questions under all conditions; all processes call it and get all.

    Batches that are in the file are not computed again; when all are done, it holds them in the
    order of the questions. Whether the same model was asked is the caller's to know.

    Args:
        answerer: the model.
        questions: one or more, each with an id of its own.
        asking: makes prompts of them.
        conditions: "asked" first, and whichever else; pictures are asked for in another thread.
        file: where answers are kept.
        candidates: for each question the texts that are ranked instead of generating; the answer is
            the likeliest, of those equally likely the first. The same texts have the same tokens.

    Raises:
        UserError: before anything is computed, two questions have one id, or one is longer than the
            model can read; later, a picture cannot be read.
        WorkError: the disk is full.
    """
    work = _Work(answerer, questions, asking, conditions, candidates)
    accelerator = answerer.accelerator
    prompts = _prompts(work)
    known: list[Any] = [_known(work, prompts, file) if accelerator.is_main_process else None]
    # Of the first process: others may be on machines that do not see its files.
    found: dict[int, Answered] = broadcast_object_list(known)[0]
    if accelerator.is_main_process:
        file.write(line_of(questions[number], found[number]) for number in sorted(found))
    accelerator.wait_for_everyone()
    names = [question.id for question in questions]
    batches = make_batches([p.tokens for p in prompts], names, answerer.batch_size)
    left = [batch for batch in batches if not all(number in found for number in batch)]
    mine = _answer_batches(work, left, file)
    # Batches that were kept in part were computed anew, whole.
    found = {**found, **{k: one for part in gather_object([mine]) for k, one in part.items()}}
    answered = [found[number] for number in range(len(questions))]
    if accelerator.is_main_process:
        file.write(map(line_of, questions, answered))
    accelerator.wait_for_everyone()
    return answered


def _prompts(work: _Work) -> list[Prompt]:
    """Of each question.

    Raises:
        UserError: as `answer_all`, before anything is computed.
    """
    answerer, seen = work.answerer, set()
    config = answerer.model.config.text_config.get_text_config(decoder=True)
    most = getattr(config, "max_position_embeddings", None)
    prompts = []
    with working("reading questions", len(work.questions)) as note:
        for number, question in enumerate(work.questions):
            if str(question.id) in seen:
                raise UserError(
                    f"{question.sample.origin}: the id {brief(question.id)} is another question's "
                    "too; give each its own"
                )
            seen.add(str(question.id))
            ids = work.asking.ids(question)
            longest = max(map(len, work.candidates_of(number)), default=answerer.max_new_tokens)
            # The last token of an answer is not read any more.
            if most is not None and len(ids) + longest - 1 > most:
                raise UserError(
                    f"{question.sample.origin}: a prompt of {len(ids):,} tokens and an answer of "
                    f"up to {longest:,}, but the language model reads {most:,}; shorten the texts, "
                    "or give fewer --shots or --max_new_tokens"
                )
            prompts.append(Prompt(len(ids), prompt_sha(ids)))
            note(number + 1)
    return prompts


def _known(work: _Work, prompts: Sequence[Prompt], file: PredictionsFile) -> dict[int, Answered]:
    """What is in the file of these questions, by their number."""
    numbers = {str(question.id): number for number, question in enumerate(work.questions)}
    known: dict[int, Answered] = {}
    for line in file.read():
        name = line.get("id")
        number = numbers.get(str(name)) if isinstance(name, str | int) else None
        if number is None:
            continue
        count = len(work.candidates_of(number))
        count = count if count <= MOST_PROBABILITIES else 0
        answered = answered_of(line, prompts[number].sha, work.conditions, count)
        if answered is not None:
            known[number] = answered
    return known


def _answer_batches(
    work: _Work, batches: Sequence[list[int]], file: PredictionsFile
) -> dict[int, Answered]:
    """Answer every n-th of the batches, as many as there are processes; by number of question."""
    answerer, found = work.answerer, {}
    accelerator = answerer.accelerator
    step = accelerator.num_processes
    own = batches[accelerator.process_index :: step]
    # In this thread, because a tokenizer is not made for two.
    prompts = ([(k, work.asking.ids(work.questions[k])) for k in batch] for batch in own)
    with (
        evaluation_mode(answerer.model),
        torch.inference_mode(),
        accelerator.autocast(),
        working("answering questions", sum(map(len, batches))) as note,
    ):
        for done, (batch, rows) in enumerate(zip(own, _ahead(work.read, prompts), strict=True), 1):
            answered = dict(zip(batch, work.answer(batch, rows), strict=True))
            file.append(line_of(work.questions[number], one) for number, one in answered.items())
            found |= answered
            # The other processes are about as far.
            note(sum(map(len, batches[: done * step])))
    return found


def _ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What is made of each item, the next in a thread while the last is worked with."""
    with ThreadPoolExecutor(1) as thread:
        later = None
        for item in items:
            now, later = later, thread.submit(make, item)
            if now is not None:
                yield now.result()
        if later is not None:
            yield later.result()

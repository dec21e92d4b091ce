"""What an evaluation asks and how it scores: questions, metrics, candidates, longest answer."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase

from tuninglab.config import EvaluateConfig
from tuninglab.config.data import parts_of
from tuninglab.console import Choices, say
from tuninglab.data.mixture import Joined
from tuninglab.data.reading.opening import Wishes, open_part
from tuninglab.data.sources import Source
from tuninglab.errors import UserError
from tuninglab.evaluation.asked_data import AskedData, drawn, read_questions
from tuninglab.evaluation.choosing import AUTO, choose_metrics, words_of
from tuninglab.evaluation.metrics.metric import Metric
from tuninglab.evaluation.metrics.names import metric_named
from tuninglab.evaluation.openflamingo import benchmark_named
from tuninglab.evaluation.own_data import MAX_ANSWER_TOKENS
from tuninglab.evaluation.questions import Question, question_of

# Metrics of probabilities.
OF_RANKS = ("roc_auc", "ranked_accuracy")


@dataclass
class Asked:
    """What is asked.

    Args:
        data: where the questions are from.
        questions: in the order of the data.
        metrics: the headline first.
        why: they score it.
        candidates: what is ranked for each question; None: answers are generated.
        max_new_tokens: of a generated answer.
    """

    data: AskedData
    questions: list[Question]
    metrics: list[Metric]
    why: str
    candidates: list[list[str]] | None
    max_new_tokens: int


def what_to_ask(config: EvaluateConfig, choices: Choices) -> Asked:
    """Read the data and decide what is asked, before a model is loaded.

    Raises:
        UserError: the data is wrong, or does not have what a setting asks for.
    """
    data = open_questions(config)
    candidates, wish, longest_tokens = config.candidates, config.metric, config.max_new_tokens
    if config.task is not None:
        bench = benchmark_named(config.task)
        if bench.ranked and candidates is None:
            candidates = bench.candidates(data.questions)
        if wish == [AUTO]:
            wish = bench.compat_metrics if config.compat else bench.metrics
        longest_tokens = longest_tokens or bench.max_new_tokens
    questions = with_candidates(data.questions, candidates)
    rank = "texts" if candidates is not None else ranking(config, wish, questions)
    metrics, why = choose_metrics(wish, questions, data.what, rank is not None, choices)
    longest = max(len(answer.encode()) for q in questions for answer in q.answers)
    return Asked(
        data,
        questions,
        metrics,
        why,
        None if rank is None else [candidates_of(question, rank) for question in questions],
        # No token is shorter than a byte, and one ends the answer.
        longest_tokens or min(MAX_ANSWER_TOKENS, longest + 1),
    )


def open_questions(config: EvaluateConfig) -> AskedData:
    """The questions that the settings name, or the embedded test set.

    Raises:
        UserError: a file or record is wrong.
    """
    if config.data is not None:
        return read_questions(parts_of(config.data) or [], Wishes.of(config), config.limit)
    from tuninglab.embedded.task import TEST_QUESTIONS, EmbeddedSamples

    say("No --data is named: the embedded test questions are asked.")
    samples = EmbeddedSamples("test", TEST_QUESTIONS)
    every = [question_of(sample, number) for number, sample in enumerate(samples, 1)]
    questions = drawn(every, config.limit, config.seed)
    return AskedData("embedded test questions", Counter(), questions, samples.content)


def examples_of(config: EvaluateConfig) -> Source | None:
    """What few-shot examples are taken from; None: there are none.

    Raises:
        UserError: a file or record is wrong.
    """
    parts = parts_of(config.shots_data, "shots_data") or []
    wishes = Wishes.of(config)
    sources = [open_part(part, wishes) for part in parts]
    return Joined([part.path for part in parts], sources) if sources else None


def with_candidates(
    questions: Sequence[Question], candidates: Sequence[str] | None
) -> list[Question]:
    """The questions with these candidates in place of their own, where there are some.

    Raises:
        UserError: what is right is none of the candidates; it names the first question.
    """
    asked = list(questions)
    if candidates is not None:
        asked = [replace(q, options=tuple(candidates), lettered=False) for q in questions]
    for question in asked:
        if question.options and not set(question.options) & set(question.answers):
            raise UserError(
                f"{question.sample.origin}: its answer {question.answers[0]!r:.80} is none of the "
                f"candidates {', '.join(question.options)[:200]}. Correct one of the two"
            )
    return asked


def ranking(
    config: EvaluateConfig, wish: Sequence[str], questions: Sequence[Question]
) -> str | None:
    """What of the options is ranked, "letters" or "texts"; None: answers are generated.

    Raises:
        UserError: a question lacks the options that are to be ranked.
    """
    named = [metric_named(word).name for word in words_of(wish) if word != AUTO]
    wished = config.rank
    if wished is None and any(name in OF_RANKS for name in named):
        wished = "texts"
    if wished is None and all(q.options and not q.lettered for q in questions):
        return "texts"
    for question in questions if wished else ():
        if not question.options or (wished == "letters" and not question.lettered):
            what = "lettered options" if wished == "letters" else "options"
            raise UserError(
                f"{question.sample.origin} has no {what} to rank. Give --candidates, or data of "
                'multiple choice or with "candidates"'
            )
    return wished


def candidates_of(question: Question, rank: str) -> list[str]:
    """What is ranked for a question."""
    if rank == "letters":
        return list(ascii_uppercase[: len(question.options)])
    return list(question.options)

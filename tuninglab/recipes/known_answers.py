"""What can be known of answers without looking: how often training gives which to what."""

from collections.abc import Iterator, Sequence

from tuninglab.config import FinetuneConfig
from tuninglab.config.yaml_file import read_config
from tuninglab.console import say
from tuninglab.data.sample import Sample
from tuninglab.errors import UserError
from tuninglab.evaluation.controls import Guesses
from tuninglab.evaluation.own_data import GUESSED_FROM
from tuninglab.evaluation.questions import Question
from tuninglab.evaluation.scoring import usual
from tuninglab.evaluation.task import evenly
from tuninglab.recipes.flamingo import asked, own_splits
from tuninglab.run_folder.named_model import NamedModel

Turn = tuple[str | None, str, str]  # type of a question, its text, the answer


def prior_of(
    questions: Sequence[Question], named: NamedModel | None, examples: Sequence[Sample] | None
) -> tuple[list[str], str]:
    """The most frequent answer to each question's type, and what it was counted in.

    The type of a question, where training has it, else its text, else all questions together.

    Args:
        questions: to be answered.
        named: the model; that of a run knows its training data.
        examples: few-shot examples, which a model without a run has seen instead; None: no such.
    """
    turns, source = None, ""
    if named is not None and named.run is not None:
        try:
            turns, source = list(_trained(named)), f"training data of {named.run}"
        except UserError as error:
            say(f"The training data of {named.run} is not there any more: {error}")
    if turns is None and examples is not None:
        turns = [turn for sample in evenly(examples, GUESSED_FROM) for turn in _turns(sample)]
        source = "the examples' data"
    if turns is None:
        turns = [(q.kind, q.text, usual(q.answers)) for q in questions]
        source = "these questions' own answers"
    kinds = Guesses((kind, answer) for kind, _, answer in turns if kind is not None)
    texts = Guesses((text, answer) for _, text, answer in turns)
    return [_guess(question, kinds, texts) for question in questions], source


def _guess(question: Question, kinds: Guesses, texts: Guesses) -> str:
    if question.kind is not None and question.kind in kinds.of_question:
        return kinds.best(question.kind)
    return texts.best(question.text)


def _trained(named: NamedModel) -> Iterator[Turn]:
    """The turns of a run's training data.

    Raises:
        UserError: it cannot be read any more.
    """
    assert named.run is not None
    settings = read_config(named.run / "config.yaml", FinetuneConfig)
    if settings.data is None:
        from tuninglab.embedded.task import TURNS, EmbeddedSamples

        items = EmbeddedSamples("train", settings.embedded_pictures, TURNS).items
        yield from ((q.type, q.text, q.answer) for item in items for q in item.questions)
        return
    for sample in evenly(own_splits(settings).train, GUESSED_FROM):
        yield from _turns(sample)


def _turns(sample: Sample) -> list[Turn]:
    return [(turn.kind, turn.question, turn.answer) for turn in asked(sample)]

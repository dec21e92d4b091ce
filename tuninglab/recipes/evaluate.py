"""The verb `evaluate`: ask, control, compare, score, and write it down."""

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuninglab.config import EvaluateConfig
from tuninglab.config.data import parts_of, split_path
from tuninglab.console import Choices, is_main_process, say
from tuninglab.data.reading.entries import kept_folder
from tuninglab.data.sources import Source
from tuninglab.errors import UserError
from tuninglab.evaluation.asking import Asking, Dialogue
from tuninglab.evaluation.conditions import ASKED, SHUFFLED, conditions_of
from tuninglab.evaluation.encoded import EncodedPictures
from tuninglab.evaluation.engine import Answerer
from tuninglab.evaluation.openflamingo import TEXT_ONLY, OpenFlamingo, benchmark_named
from tuninglab.evaluation.place import FOLDER, Place, find_place
from tuninglab.evaluation.predictions import read_predictions
from tuninglab.evaluation.rices import PooledVectors, Similar
from tuninglab.evaluation.shots import Drawn, Examples, FewShot, Pool, query_set
from tuninglab.recipes.asked import Asked, examples_of, what_to_ask
from tuninglab.recipes.evaluated import Evaluated, Evaluation
from tuninglab.recipes.known_answers import prior_of
from tuninglab.recipes.scored_model import ScoredModel, model_stamp, open_scored, prompt_of
from tuninglab.run_folder.named_model import NamedModel, find_model

BASE = "base"
NOT_STEMMED = (
    "OK-VQA's answers are stems, and predictions are not stemmed here: install nltk with its data "
    "(punkt_tab, averaged_perceptron_tagger_eng, wordnet) and inflection."
)


def evaluate(config: EvaluateConfig) -> Evaluated:
    """Score a model, or a file of predictions, and write its evaluation folder.

    Raises:
        UserError: the settings, the data or the machine do not allow it.
        WorkError: the disk is full.
        KeyboardInterrupt: stopped by Ctrl-C; what was answered is kept.
    """
    choices = Choices()
    if config.task is not None and config.prompt is None:
        config = replace(config, prompt=benchmark_named(config.task).prompt)
    asked = what_to_ask(config, choices)
    if config.predictions is not None:
        return _score_again(config, asked, choices)
    named = find_model(str(config.model))
    other = None if config.against is None else _other(config.against, named)
    examples = examples_of(config)
    evaluations = [_planned(config, asked, named, examples, n, choices) for n in config.shots]
    try:
        # Told before the model is loaded, by the process that writes.
        for one in evaluations:
            one.place.begin()
        _ask(evaluations, named, examples, choices, prompt_of(named, config))
        if isinstance(other, NamedModel):
            # The base in the words that the run was tuned with, as finetune asks it before.
            own = named if config.against == BASE else other
            prompt = prompt_of(own, config)
            _ask(evaluations, other, examples, Choices(), prompt, against=True)
        if isinstance(other, Path):
            for one in evaluations:
                one.add_against(read_predictions(other, asked.questions))
        guesses = prior_of(asked.questions, named, examples)
        return Evaluated([one.written(guesses) for one in evaluations])
    finally:
        for one in evaluations:
            one.place.release()


def _planned(
    config: EvaluateConfig,
    asked: Asked,
    named: NamedModel,
    examples: Source | None,
    shots: int,
    choices: Choices,
) -> Evaluation:
    """An evaluation by so many shots, and where it is kept; nothing is written yet."""
    conditions = conditions_of(asked.questions, config.seed)
    if not config.controls:
        conditions = {ASKED: conditions[ASKED]}
    elif SHUFFLED not in conditions and len(conditions) > 1:
        say("Only one question has pictures: there are no others to exchange them with.")
    parent = Path(config.output_dir or (named.run or Path()) / FOLDER)
    name = config.name or _name_of(config, named)
    name += f"-{shots}shots" if shots else ""
    identity = _identity(config, asked, named, shots)
    if examples is not None:
        identity["shots_data"] = examples.content
    given = config.name is not None
    place = Place(parent, {})
    if is_main_process():
        place = find_place(parent, name, identity, given, config.overwrite)
    return Evaluation(config, asked, shots, place, conditions, choices)


def _name_of(config: EvaluateConfig, named: NamedModel) -> str:
    """The name of an evaluation where none is given: of the data, outside of a run the model's."""
    parts = parts_of(config.data) or []
    data = Path(split_path(parts[0].path)[0][0]).stem if parts else "test-questions"
    model = "" if named.run is not None else f"{Path(str(config.model)).name}-"
    # As a folder may be called.
    return f"{model}{data}".strip(".-_ ")[:100] or "evaluation"


def _identity(
    config: EvaluateConfig, asked: Asked, named: NamedModel, shots: int
) -> dict[str, Any]:
    """All that answers depend on; metrics do not belong to it."""
    names = ("prompt", "beams", "precision", "seed", "limit", "rank", "candidates", "controls")
    names += ("task", "compat", "batch_size", *(("select",) if shots else ()))
    settings = {name: getattr(config, name) for name in names}
    settings |= {"shots": shots, "max_new_tokens": asked.max_new_tokens}
    return {
        "model": model_stamp(named),
        "data": asked.data.content,
        "questions": len(asked.questions),
        "ranked": asked.candidates is not None,
        "settings": settings,
    }


def _other(against: str, named: NamedModel) -> NamedModel | Path:
    """What is compared with: a model, or a file of predictions.

    Raises:
        UserError: it is the model itself, or there is none.
    """
    if against == BASE:
        if named.adapter is None:
            raise UserError(
                f"--against base: {named.base} is a base itself. Name a run or an adapter."
            )
        return NamedModel(named.base, None, "", named.tuned_on, named.run)
    if Path(against).is_file():
        return Path(against)
    return find_model(against)


def _ask(
    evaluations: Sequence[Evaluation],
    named: NamedModel,
    examples: Source | None,
    choices: Choices,
    prompt: str | None,
    against: bool = False,
) -> None:
    """Load a model, put all questions to it, and let it go."""
    config = evaluations[0].config
    scored = open_scored(named, config, choices, prompt)
    chosen = _examples(evaluations, scored, examples)
    pictures = EncodedPictures.repeatable(scored.accelerator.device, scored.batch_size)
    for one in evaluations:
        asking = _asking(one, scored, chosen)
        answerer = Answerer(
            scored.model,
            scored.processor,
            scored.accelerator,
            pictures,
            scored.batch_size,
            one.asked.max_new_tokens,
            asking.beams or config.beams,
            1.0 if asking.length_penalty is None else asking.length_penalty,
            normalise=True,
        )
        one.ask(answerer, asking, model_stamp(named) if against else None)
    del scored, pictures, chosen
    # Before another is loaded.
    gc.collect()


def _examples(
    evaluations: Sequence[Evaluation], scored: ScoredModel, samples: Source | None
) -> Examples | None:
    """Which examples stand before which question; None without any.

    Raises:
        UserError: a question has too few, or a picture cannot be read.
    """
    if samples is None:
        return None
    config, questions = evaluations[0].config, evaluations[0].asked.questions
    if config.select == "random":
        return Drawn(query_set(samples, config.seed), config.seed)
    place = kept_folder() / "vectors"
    vectors = PooledVectors(scored.model, scored.processor, place, scored.accelerator)
    most = max(TEXT_ONLY, *(one.shots for one in evaluations))
    return Similar(Pool(samples), questions, most, vectors)


def _asking(one: Evaluation, scored: ScoredModel, examples: Examples | None) -> Asking:
    """How the questions of an evaluation become prompts."""
    config = one.config
    if config.compat is not None and config.task is not None:
        benchmark = benchmark_named(config.task)
        asking = OpenFlamingo(scored.processor, benchmark, examples, one.shots)
        if config.task == "okvqa" and asking.stem is None and NOT_STEMMED not in one.notes:
            say(NOT_STEMMED)
            one.notes.append(NOT_STEMMED)
        return asking
    if not one.shots or examples is None:
        return Dialogue(scored.processor)
    return FewShot(scored.processor, examples, one.shots)


def _score_again(config: EvaluateConfig, asked: Asked, choices: Choices) -> Evaluated:
    """Score a file of predictions.

    Raises:
        UserError: it does not fit the data.
    """
    path = Path(str(config.predictions))
    predictions = read_predictions(path, asked.questions)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    identity = {"predictions": digest, "data": asked.data.content}
    parent = Path(config.output_dir or FOLDER)
    parts = parts_of(config.data) or []
    name = config.name or f"{Path(split_path(parts[0].path)[0][0]).stem}-{path.stem}"
    place = find_place(parent, name, identity, config.name is not None, config.overwrite)
    one = Evaluation(config, asked, 0, place, {}, choices)
    try:
        place.begin()
        one.add_predictions(predictions)
        if config.against is not None:
            one.add_against(read_predictions(Path(config.against), asked.questions))
        return Evaluated([one.written(prior_of(asked.questions, None, None))])
    finally:
        place.release()

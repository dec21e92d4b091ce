"""Before the first step: does the base know the words of the answers, or is it worse than guessing?

A base that never saw a word spells it in tokens whose rows were not trained: its loss is then above
ln(vocabulary), that of blind guessing, and LoRA inside the layers cannot mend it. The rows of those
tokens can be trained.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from accelerate import Accelerator
from torch.utils.data import Subset

from tuninglab.adapters.places import direct_modules
from tuninglab.adapters.token_rows import rows_problem
from tuninglab.config import TrainingConfig
from tuninglab.console import Choices, say
from tuninglab.evaluation.task import evenly
from tuninglab.recipes.loaders import make_base_loader
from tuninglab.recipes.recipe import Base
from tuninglab.training.validation import validation_loss

Config = TypeVar("Config", bound=TrainingConfig)

# Records looked at: the question is whether it is above or far below, not by how much.
LOOKED_AT = 32
# A base with random weights is as good as guessing, give or take a little.
MARGIN = 0.02
TOKENS_FROM = 20_000


def chance_loss(model: Any) -> float:
    """Nats a token of guessing blindly: the logarithm of the vocabulary's size."""
    head = model.get_output_embeddings()
    # Of a wrapped head PEFT would merge its trained rows into the weight first; FSDP2's shares of
    # it cannot be merged so.
    return math.log(getattr(head, "original_module", head).weight.shape[0])


def untuned_loss(
    base: Base, samples: Sequence[Any], config: TrainingConfig, accelerator: Accelerator
) -> float:
    """Nats an answer token of the base as it is, on a few of the training records."""
    few: Any = Subset(samples, range(min(LOOKED_AT, len(samples))))  # pyright: ignore
    loader = make_base_loader(few, base, config, accelerator, batch_size=8)
    return validation_loss(base.model, loader, accelerator)


def answer_rows(
    base: Base,
    samples: Sequence[Any],
    config: TrainingConfig,
    scope: str,
    accelerator: Accelerator,
    choices: Choices,
) -> list[int]:
    """The tokens of the answers, if their rows shall train; says why, or why they cannot.

    That a base which cannot is asked to, `check_patterns` has told before.
    """
    wish = base.tuning.train_answer_tokens
    if wish == "false" or (wish == "auto" and config.data is None):
        return []
    if base.model.get_input_embeddings().weight.device.type != accelerator.device.type:
        why = "the base is whole on no device (--parallel fsdp2), and so is not tried"
        choices.add("rows of the answers' tokens", "as told" if wish == "true" else "frozen", why)
        return _rows_of(samples, base) if wish == "true" else []
    loss, chance = untuned_loss(base, samples, config, accelerator), chance_loss(base.model)
    worse = loss > (1 + MARGIN) * chance
    say(
        f"Before tuning: {loss:.2f} nats an answer token; blind guessing has {chance:.2f}."
        + " The base is worse than guessing: it does not know these words." * worse
    )
    if wish == "auto" and not worse and config.model != "embedded":
        return []
    problem = rows_problem(base.model, direct_modules(base.model, base.tuning, scope))
    if {"embeddings", "head"} & {*base.tuning.freeze}:
        problem = "--freeze"
    if problem and wish == "auto":
        choices.add("rows of the answers' tokens", "not trained", problem)
        return []
    if wish == "true":
        why = "--tuning_config.train_answer_tokens"
    else:
        why = "worse than guessing" if worse else "the embedded base has a small vocabulary"
    ids = _rows_of(samples, base)
    choices.add("rows of the answers' tokens", f"{len(ids):,} trained", why)
    return ids


def _rows_of(samples: Sequence[Any], base: Base) -> list[int]:
    answers = base.answer_ids(evenly(samples, TOKENS_FROM))
    return sorted({token for answer in answers for token in answer})


def as_decided(config: Config, rows: Sequence[int]) -> Config:
    """The settings with `train_answer_tokens auto` as it was decided, which is what a run keeps."""
    tuning = config.tuning_config
    if tuning.train_answer_tokens != "auto":
        return config
    decided = replace(tuning, train_answer_tokens="true" if rows else "false")
    return replace(config, tuning_config=decided)

"""The plan of a run: what each of its phases needs of memory, how long it takes, whether it fits.

A plan is made of settings, lengths and shapes alone, so whoever weighs a change makes another.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from tuninglab.config import FinetuneConfig, TrainingConfig
from tuninglab.console import Choices
from tuninglab.evaluation.answers import usual_batch_size
from tuninglab.evaluation.task import evenly
from tuninglab.inspection.cost import Cost, Shape
from tuninglab.inspection.rehearsal import step_cost
from tuninglab.models.named_parts import SCOPE
from tuninglab.models.parts import DTYPES
from tuninglab.models.weights import bytes_held
from tuninglab.recipes.defaults import LARGE
from tuninglab.recipes.guessing import TOKENS_FROM
from tuninglab.recipes.planned_data import (
    ANSWERED,
    Batches,
    PlannedData,
    Scores,
    train_batches,
    val_batches,
)
from tuninglab.recipes.planned_machine import Machine
from tuninglab.recipes.planned_model import planned_model

MIB = 2**20
# What of a plan's figures is to be expected: see benchmarks/plan.py.
MEMORY_ERROR, TIME_ERROR = 0.1, 0.3
# Of mean batches, one this much larger still tells the time of a token.
ALIKE = 1.5
# Pairs of texts that are written together, and what is written at most (evaluation/texts.py).
TEXTS_TOGETHER = 128


class Times(NamedTuple):
    """Seconds of a run: of a step, of all the training with its validations, and of everything."""

    step_s: float
    train_s: float
    wall_s: float


@dataclass(frozen=True)
class Plan:
    """What a run needs of each process.

    Args:
        parts: bytes at the highest moment of the training, by what they are.
        held: of these, what is there between the steps.
        phases: bytes at the highest moment of each phase: load, train, validate, score, save.
        times: None where the speed is not known.
        batches: of the training.
        machine: that it is planned for.
        note: what of it is an estimate; "" where nothing is.
    """

    parts: dict[str, int]
    held: dict[str, int]
    phases: dict[str, int]
    times: Times | None
    batches: Batches
    machine: Machine
    note: str = ""

    @property
    def total(self) -> int:
        """Bytes at the highest moment of the training: what report.json calls the peak."""
        return sum(self.parts.values())

    @property
    def needed(self) -> int:
        """Bytes at the highest moment of all phases."""
        return max(self.phases.values())

    @property
    def fits(self) -> bool:
        """Whether the machine has so much."""
        return self.needed <= self.machine.available


def plan_run(
    config: TrainingConfig,
    data: PlannedData,
    machine: Machine,
    models: "Models",
    choices: Choices | None = None,
    quick: bool = False,
) -> Plan:
    """Plan a run.

    Args:
        config: its settings, all decided.
        data: what it learns from.
        machine: for which it is planned.
        models: gives the model of the settings.
        choices: where is said what the run would choose; None: nowhere.
        quick: rehearse nothing but the training, and what could need more than that; of a large
            model each rehearsal takes seconds.

    Raises:
        UserError: there is no such model, or the tuning does not fit it.
    """
    said = Choices(aloud=False) if choices is None else choices
    model = models(config, data)
    quick = quick or model.num_parameters() >= LARGE
    batches = train_batches(data, config, machine.processes, said)
    rehearse = _Rehearsal(model, config, machine)
    steps = [rehearse.step(shape) for shape in batches.largest]
    largest = max(steps, key=lambda cost: cost.peak)
    phases = {"load": _loading(model, largest), "train": largest.peak}
    parts = largest.held | largest.step
    validation = val_batches(data, config, machine.processes)
    for shape in validation.largest if validation else ():
        if quick and not _exceeds(shape, batches.largest):
            continue
        cost = rehearse.passing(shape)
        parts = cost.held | cost.step if cost.peak > sum(parts.values()) else parts
        phases["validate"] = max(phases.get("validate", 0), cost.peak)
    if data.scores is not None:
        asked = _asking(model, data.scores)
        if not quick or _exceeds(asked, batches.largest):
            written = _written(model, asked, data.scores.most, config.precision)
            phases["score"] = rehearse.passing(asked).peak + written
    phases["save"] = _saving(model, largest, machine)
    times = None
    if machine.speed is not None:
        times = _times(rehearse, batches, validation, data.scores, quick)
    return Plan(parts, largest.held, phases, times, batches, machine, data.note)


def _exceeds(shape: Shape, others: list[Shape]) -> bool:
    """Whether a batch has more text or more pictures than all of some others."""
    text = max(other.rows * other.tokens for other in others)
    seen = max(other.rows * other.pictures for other in others)
    return shape.rows * shape.tokens > text or shape.rows * shape.pictures > seen


class Models:
    """Models without weights, each made once of the settings that it depends on.

    Args:
        choices: where is said what is chosen for the first; of others nothing is said.
        model: that of the first settings, where it is there already.
    """

    def __init__(self, choices: Choices, model: Any = None):
        self.choices, self.given = choices, model
        self.made: dict[tuple[Any, ...], Any] = {}

    def __call__(self, config: TrainingConfig, data: PlannedData) -> Any:
        """The model of some settings: PEFT's, ready to train.

        Raises:
            UserError: there is no such model, or the tuning does not fit it.
        """
        kind = (config.precision, config.base_format, *config.savers, config.checkpoint_interval)
        kind = (*kind, config.cache_features is None, config.products)
        if kind not in self.made:
            first = not self.made
            said = self.choices if first else Choices(aloud=False)
            known = self.given if first else None
            rows = answer_rows(config, data)
            self.made[kind] = planned_model(config, said, rows) if known is None else known
        return self.made[kind]


def answer_rows(config: TrainingConfig, data: PlannedData) -> list[int]:
    """The tokens whose rows will train, as far as that is known before the base was tried."""
    wish = config.tuning_config.train_answer_tokens
    own = wish == "auto" and config.data is not None and config.model == "embedded"
    if wish != "true" and not (own and isinstance(config, FinetuneConfig)):
        return []
    answers = data.base.answer_ids(evenly(data.splits.train, TOKENS_FROM))
    return sorted({token for answer in answers for token in answer})


class _Rehearsal:
    """Steps and forward passes of a run, each rehearsed once.

    Args:
        model: without weights.
        config: settings of the run.
        machine: that it is planned for.
    """

    def __init__(self, model: Any, config: TrainingConfig, machine: Machine):
        self.model, self.config, self.machine = model, config, machine
        self.known: dict[tuple[Shape, bool], Cost] = {}

    def step(self, shape: Shape) -> Cost:
        """An optimizer step on batches of a shape."""
        return self._cost(shape, backward=True)

    def passing(self, shape: Shape) -> Cost:
        """A forward pass without gradients."""
        return self._cost(shape, backward=False)

    def seconds(self, cost: Cost) -> float:
        """How long a step or pass takes."""
        assert self.machine.speed is not None
        return self.machine.speed.seconds(cost, self.config.precision)

    def _cost(self, shape: Shape, backward: bool) -> Cost:
        if (shape, backward) not in self.known:
            config, machine = self.config, self.machine
            steps = config.gradient_accumulation_steps if backward else 1
            self.known[shape, backward] = step_cost(
                self.model,
                shape,
                config.precision,
                accumulation=steps,
                backward=backward,
                device=machine.device,  # pyright: ignore[reportArgumentType]
                parallel=config.parallel,
                processes=machine.processes,
            )
        return self.known[shape, backward]


def _loading(model: Any, cost: Cost) -> int:
    """Weights as they are read: all that stay, and one that is not yet in its format."""
    weights = sum(size for name, size in cost.held.items() if name != "optimizer")
    largest = max(parameter.numel() for parameter in model.parameters())
    # As files have them, in 32 bits at most.
    return weights + 4 * largest


def _saving(model: Any, cost: Cost, machine: Machine) -> int:
    """What is held between steps, and what trains once more where it is copied from a GPU."""
    held = sum(cost.held.values())
    trained = bytes_held(p for p in model.parameters() if p.requires_grad)
    return held + (0 if machine.device == "cpu" else trained)


def _asking(model: Any, scores: Scores) -> Shape:
    """A batch of questions that are answered together."""
    text = not hasattr(model.get_base_model(), SCOPE)
    together = TEXTS_TOGETHER if text else usual_batch_size(model)
    rows = min(together, len(scores.rows.samples))
    pictures = max(1, int(scores.rows.pictures.max()))
    return Shape(rows, int(scores.rows.tokens.max()), rows, pictures)


def _written(model: Any, shape: Shape, most: int, precision: str) -> int:
    """Keys and values of all layers for questions and answers (B, T), and in a T5 those of both."""
    base = model.get_base_model()
    config = base.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    numbers = 2 * config.num_hidden_layers * kept * width
    return numbers * shape.rows * (shape.tokens + most) * DTYPES[precision].itemsize


def _times(
    rehearse: _Rehearsal,
    batches: Batches,
    validation: Batches | None,
    scores: Scores | None,
    quick: bool,
) -> Times:
    """Seconds of a run without its start: reading the data and the weights depends on the disk."""
    config, processes = rehearse.config, rehearse.machine.processes
    # A last step of an epoch may have fewer batches than the others.
    share = batches.passes / batches.steps / config.gradient_accumulation_steps
    near = batches.largest[0]
    # Of batches that are much alike, one stands for all, by its size.
    alike = batches.mean.pictures == near.pictures and _text(near) < ALIKE * _text(batches.mean)
    rehearsed = near if quick or alike else batches.mean
    step = rehearse.seconds(rehearse.step(rehearsed)) / _text(rehearsed)
    step_s = step * _text(batches.mean) * share
    # Forward, the backward pass of what is frozen, and the forward pass once more.
    interval = config.checkpoint_interval
    forward = step / (2 + (1 / interval if interval else 0)) / config.gradient_accumulation_steps
    val_s, times = 0.0, 1
    if validation is not None:
        val_s = forward * _text(validation.mean) * validation.passes
        times = -(-batches.steps // config.eval_steps) if config.eval_steps else 1
    train_s = step_s * batches.steps + val_s * times
    wall_s = train_s + val_s
    if scores is not None:
        rows = _asking(rehearse.model, scores).rows
        wall_s += _scoring_s(scores, rows, forward, rehearse) / processes
    return Times(step_s, train_s, wall_s)


def _scoring_s(scores: Scores, together: int, forward: float, rehearse: _Rehearsal) -> float:
    """Seconds of all answers: each question is read once, and its answer written token by token."""
    rows = scores.rows
    answered = evenly(range(len(rows.samples)), ANSWERED)
    written = rows.answers(answered) / len(answered)
    batches = -(-len(rows.samples) // together)
    read_s = forward * float(rows.tokens.mean()) * together
    # Every token takes its share of the products, and reads all weights.
    speed: Any = rehearse.machine.speed
    weights = bytes_held(rehearse.model.parameters())
    token_s = forward * together + weights / speed.stream
    return batches * scores.times * (read_s + written * token_s)


def _text(shape: Shape) -> int:
    return shape.rows * shape.tokens

"""Steps of a planned run, each rehearsed once, and how long they and the whole run take."""

from typing import Any, NamedTuple

from tuninglab.config import TrainingConfig
from tuninglab.evaluation.answers import usual_batch_size
from tuninglab.evaluation.task import evenly
from tuninglab.inspection.cost import Cost, Shape
from tuninglab.inspection.rehearsal import step_cost
from tuninglab.models.named_parts import SCOPE
from tuninglab.models.weights import bytes_held
from tuninglab.recipes.planned_batches import Batches
from tuninglab.recipes.planned_data import ANSWERED, PlannedData, Scores
from tuninglab.recipes.planned_machine import Machine

# Of mean batches, one this much larger still tells the time of a token.
ALIKE = 1.5
# Pairs of texts that are written together (evaluation/texts.py).
TEXTS_TOGETHER = 128


class Times(NamedTuple):
    """Seconds of a run: of a step, of all the training with its validations, and of everything."""

    step_s: float
    train_s: float
    wall_s: float


class Rehearsal:
    """Steps and forward passes of a run, each rehearsed once.

    Args:
        model: without weights.
        config: settings of the run.
        machine: that it is planned for.
        known: what was rehearsed before, also of other models; more is added.
        process_bytes: of a process on a CPU, besides the model.
    """

    def __init__(
        self,
        model: Any,
        config: TrainingConfig,
        machine: Machine,
        known: dict[tuple[Any, ...], Cost],
        process_bytes: int,
    ):
        self.model, self.config, self.machine = model, config, machine
        self.known, self.process_bytes = known, process_bytes

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
        config, machine = self.config, self.machine
        steps = config.gradient_accumulation_steps if backward else 1
        spread = (config.parallel, machine.processes, machine.device)
        # Models are kept as long as what is known of them.
        key = (id(self.model), shape, backward, steps, *spread)
        if key not in self.known:
            self.known[key] = step_cost(
                self.model,
                shape,
                config.precision,
                accumulation=steps,
                backward=backward,
                device=machine.device,  # pyright: ignore[reportArgumentType]
                parallel=config.parallel,
                processes=machine.processes,
                process_bytes=self.process_bytes,
            )
        return self.known[key]


def asked_together(model: Any, scores: Scores) -> Shape:
    """A batch of questions that are answered together."""
    text = not hasattr(model.get_base_model(), SCOPE)
    together = TEXTS_TOGETHER if text else usual_batch_size(model)
    rows = min(together, len(scores.rows.samples))
    pictures = max(1, int(scores.rows.pictures.max()))
    return Shape(rows, int(scores.rows.tokens.max()), rows, pictures)


def times_of(
    rehearse: Rehearsal,
    data: PlannedData,
    batches: Batches,
    validation: Batches | None,
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
    computes_s = step * _text(batches.mean) * share
    step_s = _with_loading(computes_s, batches.mean, config, data)
    # Forward, the backward pass of what is frozen, and the forward pass once more.
    interval = config.checkpoint_interval
    forward = step / (2 + (1 / interval if interval else 0)) / config.gradient_accumulation_steps
    val_s, times = 0.0, 1
    if validation is not None:
        pass_s = forward * _text(validation.mean)
        val_s = _with_loading(pass_s, validation.mean, config, data) * validation.passes
        times = -(-batches.steps // config.eval_steps) if config.eval_steps else 1
    train_s = step_s * batches.steps + val_s * times
    wall_s = train_s + val_s
    if data.scores is not None:
        rows = asked_together(rehearse.model, data.scores).rows
        wall_s += _scoring_s(data, data.scores, rows, forward, rehearse) / processes
    return Times(step_s, train_s, wall_s)


def _with_loading(
    computes_s: float, shape: Shape, config: TrainingConfig, data: PlannedData
) -> float:
    """Seconds of a batch that is loaded too: meanwhile, or before, where nobody else does it."""
    loads_s = shape.rows * shape.pictures * data.picture_s * (config.cache_features is None)
    return max(computes_s, loads_s / config.workers) if config.workers else computes_s + loads_s


def _scoring_s(
    data: PlannedData, scores: Scores, together: int, forward: float, rehearse: Rehearsal
) -> float:
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
    # Each time its pictures are read anew.
    looks_s = float(rows.pictures.sum()) * data.picture_s * (rehearse.config.cache_features is None)
    return scores.times * (batches * (read_s + written * token_s) + looks_s)


def _text(shape: Shape) -> int:
    return shape.rows * shape.tokens

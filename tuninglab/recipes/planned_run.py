"""The plan of a run: what each of its phases needs of memory, how long it takes, whether it fits.

A plan is made of settings, lengths and shapes alone, so whoever weighs a change makes another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tuninglab.config import FinetuneConfig, TrainingConfig
from tuninglab.console import Choices
from tuninglab.evaluation.task import evenly
from tuninglab.inspection.cost import Cost, Shape
from tuninglab.inspection.rehearsal import RUN_BESIDES, process_held
from tuninglab.inspection.shared_cost import WHOLE
from tuninglab.models.named_parts import SCOPE
from tuninglab.models.parts import DTYPES
from tuninglab.models.weights import bytes_held
from tuninglab.recipes.defaults import LARGE
from tuninglab.recipes.guessing import TOKENS_FROM
from tuninglab.recipes.planned_batches import Batches, train_batches, val_batches
from tuninglab.recipes.planned_data import PlannedData
from tuninglab.recipes.planned_machine import Machine
from tuninglab.recipes.planned_model import changes_as_read, planned_model
from tuninglab.recipes.planned_times import Rehearsal, Times, asked_together, times_of
from tuninglab.training.hardware import held_memory_bytes

MIB = 2**20
# How far off plans were seen to be. Memory: twelve runs of benchmarks/plan.py, which it was fitted
# to, within 0.1, a short one beside them 0.13. Time: nine of the twelve within 0.3, all about 0.5.
MEMORY_ERROR, TIME_ERROR = 0.15, 0.5
# Models have at least so many, of about one size.
FEWEST_BLOCKS = 4


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
        sent: bytes that each process sends to others, a step.
    """

    parts: dict[str, int]
    held: dict[str, int]
    phases: dict[str, int]
    times: Times | None
    batches: Batches
    machine: Machine
    note: str = ""
    sent: int = 0

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
    rehearse = Rehearsal(model, config, machine, models.costs, models.process_bytes)
    steps = [rehearse.step(shape) for shape in batches.largest]
    largest = max(steps, key=lambda cost: cost.peak)
    phases = {"load": _loading(model, largest, config, machine), "train": largest.peak}
    parts = largest.held | largest.step
    validation = val_batches(data, config, machine.processes)
    could_exceed = _Bound(largest, batches.largest, config.checkpoint_interval is not None)
    for shape in validation.largest if validation else ():
        if quick and not could_exceed(shape):
            continue
        cost = rehearse.passing(shape)
        parts = cost.held | cost.step if cost.peak > sum(parts.values()) else parts
        phases["validate"] = max(phases.get("validate", 0), cost.peak)
    if data.scores is not None:
        asked = asked_together(model, data.scores)
        written = _written(model, asked, data.scores.most, config.precision)
        if not quick or could_exceed(asked, written):
            phases["score"] = rehearse.passing(asked).peak + written
    phases["save"] = _saving(model, largest, machine)
    times = None
    if machine.speed is not None:
        times = times_of(rehearse, data, batches, validation, quick)
    sent = largest.sent
    return Plan(parts, largest.held, phases, times, batches, machine, data.note, sent)


class _Bound(NamedTuple):
    """Tells, before it is rehearsed, whether a pass without gradients could need more than a step.

    Such a pass holds what one block makes at a time, where a step keeps what all of them make.

    Args:
        step: that needs the most.
        shapes: the largest that train.
        recomputes: whether the step keeps little of its blocks.
    """

    step: Cost
    shapes: list[Shape]
    recomputes: bool

    def __call__(self, shape: Shape, besides: int = 0) -> bool:
        """Whether a batch of a shape could, with so many bytes besides."""
        text = max(other.rows * other.tokens for other in self.shapes)
        seen = max(other.rows * other.pictures for other in self.shapes)
        larger = max(shape.rows * shape.tokens / text, shape.rows * shape.pictures / seen)
        share = 1.0 if self.recomputes else 1 / FEWEST_BLOCKS
        made = sum(self.step.step.values())
        return made * larger * share + besides > made


class Models:
    """Models without weights, each made once of the settings that it depends on.

    Args:
        choices: where is said what is chosen for the first; of others nothing is said.
        rows: tokens whose rows train; None: as far as the settings and the data tell.
        loaded: the model that this process has loaded to train; None: there is none yet.

    Attributes:
        process_bytes: that a process on a CPU holds besides, as measured with the first model.
    """

    process_bytes: int

    def __init__(self, choices: Choices, rows: Sequence[int] | None = None, loaded: Any = None):
        self.choices, self.rows, self.loaded = choices, rows, loaded
        self.made: dict[tuple[Any, ...], Any] = {}
        # Before the speed of the machine is measured, which leaves something in memory.
        self._resident = held_memory_bytes(torch.device("cpu"))
        # What steps of them cost.
        self.costs: dict[tuple[Any, ...], Cost] = {}

    def __call__(self, config: TrainingConfig, data: PlannedData) -> Any:
        """The model of some settings: PEFT's, ready to train.

        Raises:
            UserError: there is no such model, or the tuning does not fit it.
        """
        kind = (config.precision, config.base_format, *config.savers, config.checkpoint_interval)
        kind = (*kind, config.cache_features is None, config.products)
        if kind not in self.made:
            said = Choices(aloud=False) if self.made else self.choices
            rows = answer_rows(config, data) if self.rows is None else self.rows
            model = planned_model(config, said, rows)
            if not self.made:
                self.process_bytes = self._process(model)
            self.made[kind] = model
        return self.made[kind]

    def _process(self, model: Any) -> int:
        if self.loaded is None:
            return process_held(model, self._resident)
        # Loaded, which is about half of it, but nothing was scored yet.
        besides = RUN_BESIDES[hasattr(model.get_base_model(), SCOPE)] // 2
        return process_held(self.loaded, self._resident) + besides


def seen_side(model: Any) -> int | None:
    """Pixels of a side of the pictures that a model sees; None: it sees none."""
    vision = getattr(model.get_base_model().config, "vision_config", None)
    return getattr(vision, "image_size", None)


def answer_rows(config: TrainingConfig, data: PlannedData) -> list[int]:
    """The tokens whose rows will train, as far as that is known before the base was tried."""
    wish = config.tuning_config.train_answer_tokens
    own = wish == "auto" and config.data is not None and config.model == "embedded"
    if wish != "true" and not (own and isinstance(config, FinetuneConfig)):
        return []
    answers = data.base.answer_ids(evenly(data.splits.train, TOKENS_FROM))
    return sorted({token for answer in answers for token in answer})


def _loading(model: Any, cost: Cost, config: TrainingConfig, machine: Machine) -> int:
    """Weights as they are read: all that stay, and one that is not yet in its format."""
    held = {name: size for name, size in cost.held.items() if name != "optimizer"}
    sharded = config.parallel == "fsdp2" and machine.processes > 1
    if sharded and machine.device == "cpu" and changes_as_read(config):
        # The first process of a machine makes the whole base for all (models/loaded_once.py);
        # on its way to a GPU that is in the memory of the machine.
        held = {name: size for name, size in held.items() if name in WHOLE}
        held["whole"] = bytes_held([*model.parameters(), *model.buffers()])
    largest = max(parameter.numel() for parameter in model.parameters())
    # As files have them, in 32 bits at most.
    return sum(held.values()) + 4 * largest


def _saving(model: Any, cost: Cost, machine: Machine) -> int:
    """What is held between steps, and what trains once more where it is copied from a GPU."""
    held = sum(cost.held.values())
    trained = bytes_held(p for p in model.parameters() if p.requires_grad)
    return held + (0 if machine.device == "cpu" else trained)


def _written(model: Any, shape: Shape, most: int, precision: str) -> int:
    """Keys and values of all layers for questions and answers (B, T), and in a T5 those of both."""
    base = model.get_base_model()
    config = base.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    numbers = 2 * config.num_hidden_layers * kept * width
    return numbers * shape.rows * (shape.tokens + most) * DTYPES[precision].itemsize

"""What a recipe answers to the driver, its data and base model, and what the driver makes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from tuninglab.config import TrainingConfig
from tuninglab.config.tuning import LoraTuning
from tuninglab.console import Choices, is_main_process
from tuninglab.data.sources import Splits
from tuninglab.disk import whole_folder
from tuninglab.evaluation.task import Task
from tuninglab.run_folder import RunFolder
from tuninglab.run_folder.ownership import note_base

Config = TypeVar("Config", bound=TrainingConfig)

WHOLE_MODEL = ""  # a scope of LoRA: nothing of a T5 is left out


class Tunable(Protocol):
    """A base model, loaded or planned, and what of it trains."""

    @property
    def model(self) -> Any:
        """Frozen or not."""
        ...

    @property
    def tuning(self) -> LoraTuning:
        """Of the settings of the run."""
        ...


@dataclass
class Base:
    """A base model, and how samples become its inputs and its answers.

    Args:
        model: frozen or not; the driver freezes it.
        processor: saved beside a base that is new.
        name: what the report and adapter_config.json call it; None: it is new, the run keeps it.
        tuning: what trains.
        rows: samples -> rows, each made when it is asked for; with `features`, a cache, of these.
        collator: rows -> a `Batch`.
        tokens: how many tokens each of some samples has.
        answer_ids: the tokens of the answers of each of some samples.
        longest_tokens: of what the model can read; None: it has no limit.
        answer: model, samples, most new tokens -> what the model answers to each; with `features`,
            as above.
        tokens_key: all that `tokens` depends on beside the samples; None: counts are not kept.
        prompt: how a dialogue becomes a text, as an adapter keeps it; None: there are no dialogues.
    """

    model: Any
    processor: Any
    name: str | None
    tuning: LoraTuning
    rows: Callable[..., Dataset]
    collator: Callable[[Any], Any]
    tokens: Callable[[Sequence[Any]], list[int]]
    answer_ids: Callable[[Sequence[Any]], list[list[int]]]
    longest_tokens: int | None
    answer: Callable[..., list[str]]
    tokens_key: str | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class Recipe(Generic[Config]):
    """What differs between recipes.

    Args:
        scope: the part of the model that LoRA goes into; "" is all of it.
        data: opens and checks what the settings name, before anything heavy is loaded.
        load: loads the base in the precision of the settings, which is no longer `auto`.
    """

    scope: str
    data: Callable[[Config], Task]
    load: Callable[[Config, RunFolder, Choices], Base]


class Foreseen(NamedTuple):
    """What a plan expects of a run, to be compared with what comes.

    Args:
        peak_memory_mib: while training.
        step_s: None where the speed of the machine is not known.
        train_s: of all steps, with validations.
        steps: of the run.
    """

    peak_memory_mib: float
    step_s: float | None
    train_s: float | None
    steps: int

    def kept(self) -> dict[str, float | None]:
        """What report.json has of it."""
        step_s = None if self.step_s is None else float(f"{self.step_s:.4g}")
        return {"peak_memory_mib": self.peak_memory_mib, "step_s": step_s}


@dataclass
class Setup:
    """What a run works with, ready to train."""

    config: TrainingConfig
    run: RunFolder
    splits: Splits
    model: Any
    base: Base
    base_name: str
    train_loader: DataLoader
    val_loaders: dict[str, DataLoader]
    accelerator: Accelerator
    # None: it could not be planned, or another process did it.
    plan: Foreseen | None = None


def keep_base(base: Base, run: RunFolder) -> str:
    """Save a new base with the run, which is the only place it is in; returns where."""
    folder = run.path / "base"
    if is_main_process() and not run.resumed:
        with whole_folder(folder) as beside:
            base.model.save_pretrained(beside)
            base.processor.save_pretrained(beside)
            note_base(run.path, beside)
    return str(folder)

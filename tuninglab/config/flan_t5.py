"""The settings of `flan-t5`: the source of its flags, YAML keys and help."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from tyro.conf import Suppress, arg

from tuninglab.config.checks import check_positive
from tuninglab.config.data import DataFlag
from tuninglab.config.training import TrainingConfig
from tuninglab.config.tuning import TextTuningConfig
from tuninglab.errors import UserError

EMBEDDED_PAIRS = 24_000


@dataclass
class FlanT5Config(TrainingConfig):
    """Tune a T5 on pairs of texts; with nothing named, the embedded one learns to write dates."""

    INT8_BY_DEFAULT: ClassVar = True

    recipe: Suppress[Literal["flan-t5"]] = "flan-t5"
    model: str = "embedded"
    """Base model: `embedded`, a model directory, or a hub id such as google/flan-t5-small."""
    data: DataFlag = None
    """Training data: JSONL of {"source", "target"} or of messages. None: the embedded dates."""
    run_name: str | None = None
    """Name of the run folder. None: flan_t5 with model and data embedded, else a free name."""
    # Chosen on the validation split of the embedded dates.
    batch_size: Annotated[
        int | Literal["auto"], arg(aliases=("--per_device_train_batch_size",))
    ] = 32
    """Records per process and forward pass; auto: the most that fit into memory, by the plan."""
    learning_rate: Annotated[float, arg(aliases=("--lr",))] = 3e-3
    """Peak learning rate."""
    embedded_pairs: int = EMBEDDED_PAIRS
    """Without --data: training pairs of the embedded dates."""
    compare: bool = False
    """Measure instead of training: time, memory and loss of int8, 16-bit and others."""
    rounds: int = 5
    """With --compare: how often each configuration is measured, in turns."""
    tuning_config: TextTuningConfig = field(default_factory=TextTuningConfig)

    def validate(self) -> None:
        """Check every range, and settings that exclude each other.

        Raises:
            UserError: naming the flag, the value given, what is expected and the remedy.
        """
        check_positive(self, "rounds", "embedded_pairs")
        super().validate()

    def _check_combinations(self) -> None:
        if self.compare:
            self._check_comparison()
        if self.data is not None and self.embedded_pairs != EMBEDDED_PAIRS:
            raise UserError("--embedded_pairs is given with --data. Leave one of them out.")
        super()._check_combinations()

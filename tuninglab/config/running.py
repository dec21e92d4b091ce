"""How a run is spread over processes, and where its figures go while it runs."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tuninglab.config.checks import check
from tuninglab.config.marks import Mark
from tuninglab.config.validation import ValidationConfig

Parallel = Literal["ddp", "fsdp2"]


@dataclass
class RunningConfig(ValidationConfig):
    """Processes and trackers of a training; `TrainingConfig` adds all else."""

    # A checkpoint holds whole tensors: it is read into whatever sharding goes on.
    parallel: Annotated[Parallel, Mark.CHANGEABLE] = "ddp"
    """With several processes: ddp has the whole model in each, fsdp2 a share of every block."""
    track: Annotated[list[str] | None, Mark.CHANGEABLE] = None
    """Send the figures of metrics.jsonl to trackers as well: tensorboard, wandb, mlflow, trackio
    and others that accelerate knows. None: to none."""

    def _check_running(self) -> None:
        """Check the trackers.

        Raises:
            UserError: the list is empty.
        """
        check(self.track != [], "track", self.track, "the name of a tracker, e.g. tensorboard")

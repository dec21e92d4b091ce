"""The settings of `plan`: those of the training that is planned, and for which machine."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tuninglab.config.checks import check, check_positive
from tuninglab.config.finetune import FinetuneConfig
from tuninglab.config.flan_t5 import FlanT5Config
from tuninglab.config.marks import Mark
from tuninglab.errors import UserError

Planned = Literal["auto", "cpu", "cuda"]


@dataclass
class _Machine:
    """For which machine is planned; without these, for the one that the plan is made on."""

    processes: Annotated[int | None, Mark.CALL] = None
    """Plan for so many processes, each on a device of its own. None: as torchrun started."""
    device: Annotated[Planned, Mark.CALL] = "auto"
    """Plan for a GPU or for a CPU. auto: for what this machine has."""
    memory_gib: Annotated[float | None, Mark.CALL] = None
    """Plan for devices with so much memory. None: what is free on this machine."""

    def validate(self) -> None:
        """Check for which machine is planned, that it is the start of a run, and the run.

        Raises:
            UserError: naming the flag, the value given, what is expected and the remedy.
        """
        check_positive(self, "processes", most=1_000_000)
        memory, expected = self.memory_gib, "a number above 0 and at most 1,000,000"
        check(memory is None or 0 < memory <= 1e6, "memory_gib", memory, expected)
        settings: Any = self
        for name in ("compare", "resume"):
            if getattr(settings, name) is True:
                raise UserError(
                    f"--{name} has no use here: what is planned is a training from its start. "
                    "Leave it out."
                )
        # `auto` may stand in a recipe, and wants a name that a plan does not need.
        settings.resume = False
        # Of the training, which stands beside this class in those below.
        super().validate()  # pyright: ignore[reportAttributeAccessIssue]


@dataclass
class PlanConfig(_Machine, FinetuneConfig):
    """Say what memory and time a run would take, and whether it fits; `plan flan-t5` for a T5."""


@dataclass
class PlanTextConfig(_Machine, FlanT5Config):
    """Say what memory and time a run of flan-t5 would take, and whether it fits."""

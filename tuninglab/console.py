"""What a command says while it works: notes to standard error, choices with their reason."""

import os
import sys
from dataclasses import dataclass, field

# What accelerate answered, once it was asked (training/hardware.py).
_answered: bool | None = None


def is_main_process() -> bool:
    """True on the one process that speaks and writes: accelerate's first, and any that is alone.

    Before accelerate is loaded, it is foreseen by accelerate's own rule: a process is one of
    several if LOCAL_RANK and WORLD_SIZE say so. Job templates set RANK alone, also for one process.
    """
    if _answered is not None:
        return _answered
    several = "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    return not several or os.environ.get("RANK", "0") == "0"


def answer_main_process(value: bool | None) -> None:
    """Keep what accelerate says of this process, for all who ask; None forgets it."""
    global _answered
    _answered = value


def say(text: str = "") -> None:
    """Print a note to standard error, from the main process; standard output is for results."""
    if is_main_process():
        print(text, file=sys.stderr, flush=True)


@dataclass
class Choices:
    """Automatic choices of a run: each is said once, with its reason, and saved with the run."""

    made: list[dict[str, str]] = field(default_factory=list)

    def add(self, what: str, value: str, reason: str) -> str:
        """Record and say `what: value (reason)`; returns the value."""
        entry = {"choice": what, "value": value, "reason": reason}
        if entry not in self.made:
            self.made.append(entry)
            say(f"{what}: {value} ({reason})")
        return value

"""What a command says while it works: notes to standard error, choices with their reason."""

import os
import sys
from dataclasses import dataclass, field


def is_main_process() -> bool:
    """True on the one process that speaks: rank 0 under torchrun, and any plain process."""
    return os.environ.get("RANK", "0") == "0"


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

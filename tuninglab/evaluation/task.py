"""What data answers to the driver of the recipes: its samples, and its scores if it has any."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tuninglab.data.splits import Splits

# What the model answers to samples, as it is at the time: (samples, most new tokens) -> texts.
# All processes must ask, for the same samples: each then answers a share of them.
Answer = Callable[[Sequence[Any], int], list[str]]


class Task(Protocol):
    """Data with scores of its own besides the loss; the embedded ones are such."""

    splits: Splits

    def before(self, answer: Answer) -> dict[str, Any]:
        """Score the untuned model, for `evaluation.before` of the report."""
        ...

    def after(self, answer: Answer) -> dict[str, dict[str, Any]]:
        """Score the tuned model, as entries of `evaluation`: `after`, `controls`, `prior`."""
        ...

    def write_cards(self, run_dir: Path) -> list[dict[str, Any]]:
        """Write what is shown into the run folder; returns some questions and answers."""
        ...


@dataclass
class Unscored:
    """Data that only has a loss."""

    splits: Splits

    def before(self, answer: Answer) -> dict[str, Any]:
        """Nothing."""
        return {}

    def after(self, answer: Answer) -> dict[str, dict[str, Any]]:
        """Nothing."""
        return {}

    def write_cards(self, run_dir: Path) -> list[dict[str, Any]]:
        """Nothing."""
        return []

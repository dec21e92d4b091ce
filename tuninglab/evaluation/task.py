"""What a data set with scores of its own answers to a recipe."""

from pathlib import Path
from typing import Any, Protocol

from tuninglab.data.splits import Splits


class Task(Protocol):
    """Data with scores of its own besides the loss; the embedded ones are such."""

    splits: Splits

    def before(self, model: Any, processor: Any) -> dict[str, Any]:
        """Score the untuned model, for `evaluation.before` of the report."""
        ...

    def after(self, model: Any, processor: Any) -> dict[str, dict[str, Any]]:
        """Score the tuned model, as entries of `evaluation`: `after`, `controls`, `prior`."""
        ...

    def write_cards(self, run_dir: Path) -> list[dict[str, Any]]:
        """Write what is shown into the run folder; returns some questions and answers."""
        ...

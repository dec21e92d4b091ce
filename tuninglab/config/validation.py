"""What a run learns from, and the settings of how that is measured while it trains."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Suppress

from tuninglab.config.checks import check, check_positive
from tuninglab.config.data import DataFlag, check_places
from tuninglab.config.marks import Mark
from tuninglab.errors import UserError


@dataclass
class ValidationConfig:
    """Base and data of a training, and its validations; `TrainingConfig` adds all else."""

    recipe: Suppress[str] = ""
    """Kept in config.yaml: which recipe the settings are for."""
    model: Annotated[str, Mark.PATH] = "embedded"
    """Base model: `embedded`, a model directory, or a hub id."""
    data: DataFlag = None
    """Training data: files or folders. None: the embedded data."""
    val_data: DataFlag = None
    """Validation data, in the formats of --data."""
    val_split: float = 0.0
    """Share of --data held out for validation, from 0 to below 1."""
    eval_steps: Annotated[int | None, Mark.CHANGEABLE] = None
    """Optimizer steps between validations. None: only before and after the training."""
    score_questions: int | None = None
    """Validation records answered before and after tuning, and by the controls. None: by the size
    of the base; 0: none."""
    # Neither this nor the next may change on the way: the best so far is the best by them.
    eval_metric: list[str] | None = None
    """Scores of the answered validation records at each validation, by the names of evaluate's
    --metric (exact, vqa, ...). None: they are answered before and after the training only."""
    keep_best: Literal["metric", "val_loss"] | None = None
    """End with the step of the best validation, by the first --eval_metric or by the loss, and keep
    its checkpoint. None: end with the last step."""
    patience: Annotated[int | None, Mark.CHANGEABLE] = None
    """With --keep_best: stop after so many validations in a row without a better one."""

    def _check_validation(self) -> None:
        """Check the ranges of what concerns validation.

        Raises:
            UserError: naming the flag, the value given and what is expected.
        """
        check_positive(self, "eval_steps", "patience")
        check_positive(self, "score_questions", least=0)
        check_places(self, "data", "val_data")
        check(0 <= self.val_split < 1, "val_split", self.val_split, "a share from 0 to below 1")
        metrics = self.eval_metric
        check(metrics != [], "eval_metric", metrics, "the name of a metric or several, e.g. exact")

    def _check_validation_data(self) -> None:
        """Refuse validation settings that exclude each other, or that nothing is there for.

        Raises:
            UserError: naming them, and the remedy.
        """
        if self.val_data is not None and self.val_split > 0:
            raise UserError("--val_data and --val_split are both given. Give one of them.")
        if self.data is None:
            self._check_without_data()
        elif self.val_data is None and self.val_split == 0:
            for name in ("eval_steps", "eval_metric", "keep_best"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"--{name} is given, but no validation data. Add --val_split 0.1 or "
                        "--val_data."
                    )
        if self.eval_metric is not None and self.score_questions == 0:
            raise UserError(
                "--eval_metric scores the answered validation records, and --score_questions 0 "
                "has none answered. Leave one of them out."
            )

    def check_best(self) -> None:
        """Refuse --keep_best and --patience without what they need.

        Raises:
            UserError: naming what is missing.
        """
        if self.keep_best == "metric" and self.eval_metric is None:
            raise UserError(
                "--keep_best metric is given without --eval_metric. Add --eval_metric exact, or "
                "give --keep_best val_loss."
            )
        # With one validation, at the end, the last step is the best.
        if self.keep_best is not None and self.eval_steps is None:
            raise UserError(
                "--keep_best is given without --eval_steps: only the last step would be validated. "
                "Add --eval_steps 100, for example."
            )
        # Without it the run would end with weights that are known not to be its best.
        if self.patience is not None and self.keep_best is None:
            raise UserError(
                "--patience is given without --keep_best, which says what better means. Add "
                "--keep_best val_loss, or --keep_best metric with --eval_metric."
            )

    def _check_without_data(self) -> None:
        # The embedded data brings its own validation set.
        if self.val_data is not None:
            raise UserError("--val_data is given without --data. Name the training data too.")
        if self.val_split > 0:
            raise UserError("--val_split is given without --data. The embedded data is split.")

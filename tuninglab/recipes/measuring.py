"""What a run is measured by while it trains, and what its report says of the best validation."""

from collections.abc import Mapping, Sequence
from typing import Any

from tuninglab.config import TrainingConfig
from tuninglab.errors import UserError
from tuninglab.evaluation.metrics.metric import Metric
from tuninglab.evaluation.metrics.names import metric_named
from tuninglab.evaluation.task import Answer
from tuninglab.recipes.recipe import Setup
from tuninglab.training.best import VAL_LOSS, Measure, early_stop
from tuninglab.training.parallel import shared_out
from tuninglab.training.state import Progress
from tuninglab.training.validation import validation_losses


def chosen_metrics(config: TrainingConfig) -> list[Metric]:
    """The metrics of --eval_metric in their order, each once; none without the flag.

    Raises:
        UserError: there is no such metric.
    """
    try:
        found = [metric_named(name) for name in config.eval_metric or ()]
    except UserError as error:
        raise UserError(f"--eval_metric: {error}") from error
    return list({metric.name: metric for metric in found}.values())


def measure_of(config: TrainingConfig) -> Measure | None:
    """What --keep_best chooses the best validation by; None without the flag.

    Raises:
        UserError: as `chosen_metrics`.
    """
    if config.keep_best != "metric":
        return VAL_LOSS if config.keep_best else None
    # Of every metric more is better.
    name = chosen_metrics(config)[0].name
    return Measure(name, f"val_{name}", highest=True)


def answers_of(setup: Setup) -> Answer:
    """How the model answers samples as it is at the time, each process a share of them."""

    def answer(samples: Sequence[Any], max_new_tokens: int) -> list[str]:
        def work(share: Sequence[Any]) -> list[str]:
            with setup.accelerator.autocast():
                return setup.base.answer(setup.model.eval(), share, max_new_tokens)

        return shared_out(work, setup.model, setup.accelerator)(samples)

    return answer


def val_score(setup: Setup) -> dict[str, float]:
    """`val_loss` of the model as it is now; empty without validation data."""
    if not setup.val_loaders:
        return {}
    return validation_losses(setup.model, setup.val_loaders, setup.accelerator)


def best_figures(
    progress: Progress, config: TrainingConfig, planned_steps: int
) -> Mapping[str, Any]:
    """What `train` of report.json holds of the best validation, and of an early stop.

    Args:
        progress: at the end.
        config: the settings of the run.
        planned_steps: after how many it would have ended by itself.
    """
    measure = measure_of(config)
    if measure is None or progress.best_step is None:
        return {}
    best = {"step": progress.best_step, "metric": measure.name, "value": progress.best_value}
    stop = early_stop(progress, config.patience, planned_steps, measure)
    return {"best": best} | ({"stopped_early": stop} if stop else {})

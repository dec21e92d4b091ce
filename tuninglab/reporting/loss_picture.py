"""loss.png of a run: its loss and learning rate over the steps, as a picture to pass on."""

from pathlib import Path

from tuninglab.disk import own_file
from tuninglab.reporting.curves import LOG_FROM, Metrics, Points, series, smoothed


def draw_curves(metrics: Metrics, path: Path) -> None:
    """Draw training and validation loss, and the learning rate, over the steps as a PNG."""
    # Not pyplot: it would pick a display and keep figures alive.
    from matplotlib.figure import Figure

    # Loss is what one looks at; the schedule only explains its bends.
    figure = Figure(figsize=(9, 3.4), dpi=120, layout="constrained")
    loss_axes, rate_axes = figure.subplots(1, 2, width_ratios=[2, 1])
    training, validation = series(metrics, "loss"), series(metrics, "val_loss")
    # Single steps stay visible, pale: a smooth line alone hides spikes.
    loss_axes.plot(*_axes(training), color="#b9c7d6", linewidth=1, label="training")
    for line in smoothed("training", training):
        loss_axes.plot(*_axes(line.points), color="#1f5f99", label=line.label)
    if validation:
        loss_axes.plot(*_axes(validation), color="#b3541e", marker="o", label="validation")
    values = [value for _, value in (*training, *validation)]
    # On an even axis a fall from 7 to 0.03 is a cliff and then a flat line.
    if values and min(values) > 0 and max(values) > LOG_FROM * min(values):
        loss_axes.set_yscale("log")
        loss_axes.yaxis.set_major_formatter("{x:g}")
    loss_axes.set(xlabel="step", ylabel="loss (nats per answer token)", title="Loss")
    rate_axes.plot(*_axes(series(metrics, "learning_rate")), color="#1f5f99")
    rate_axes.set(xlabel="step", title="Learning rate")
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    if training:
        loss_axes.legend(frameon=False)
    for axes in (loss_axes, rate_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    # Without the Software entry the file does not change with matplotlib's version string.
    # Another process may draw at the same time, and what is there be a pipe to be waited for.
    with own_file(path) as beside:
        figure.savefig(beside, format="png", metadata={"Software": None})


def _axes(points: Points) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [value for _, value in points]

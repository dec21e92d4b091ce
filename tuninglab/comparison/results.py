"""What was measured, as rows with ratios, as a table for people and as a plot."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tuninglab.comparison.timing import Measured, ratio_of
from tuninglab.comparison.variants import PLAIN, Variant
from tuninglab.comparison.workloads import EPOCH_SAMPLES, Workload

Row = dict[str, Any]

# Parts of the memory, and what the table calls them.
PARTS = {
    "weights": "weights",
    "embeddings_head": "tables",
    "lora_gradients_optimizer": "trained",
    "activations": "activations",
    "logits": "logits",
    "rest": "rest",
}
PARTS_EXPLAINED = (
    "Of the peak: tables are embedding and head; trained is LoRA, its gradients and optimizer "
    "states; activations and logits are kept for the backward pass; rest is temporary."
)


def make_row(
    variant: Variant, workload: Workload, measured: Measured, memory: dict[str, Any]
) -> Row:
    """One row, without ratios.

    Args:
        variant: what was measured.
        workload: on what.
        measured: its steps.
        memory: from `measure_memory`.
    """
    step_s = statistics.median(measured.times_s)
    return {
        **vars(variant),
        "savers": list(variant.savers),
        **memory,
        "step_s": round(step_s, 4),
        "step_s_min": round(min(measured.times_s), 4),
        "epoch_s": round(step_s * EPOCH_SAMPLES / workload.batch_size, 1),
        "s_per_1k_tokens": round(1000 * step_s / workload.tokens_a_step, 4),
        "warm_up_s": [round(value, 3) for value in measured.warm_up_s],
        "times_s": [round(value, 4) for value in measured.times_s],
        "losses": {
            f"seed {seed}": [round(loss, 5) for loss in losses]
            for seed, losses in measured.losses.items()
        },
    }


def add_ratios(rows: Sequence[Row], plain: Row) -> None:
    """Set `time_ratio`, `time_ratio_min`, `memory_ratio` and `loss_gap` of every row.

    The gap is the mean over seeds of how far the last loss is from that of the plain row.
    """
    for row in rows:
        median, lowest = ratio_of(row["times_s"], plain["times_s"])
        row["time_ratio"], row["time_ratio_min"] = round(median, 4), round(lowest, 4)
        row["memory_ratio"] = round(row["peak_memory_mib"] / plain["peak_memory_mib"], 4)
        if "peak_returned_mib" in row:
            ratio = row["peak_returned_mib"] / plain["peak_returned_mib"]
            row["memory_returned_ratio"] = round(ratio, 4)
        pairs = zip(_last_losses(row), _last_losses(plain), strict=True)
        row["loss_gap"] = round(statistics.mean(abs(one - two) for one, two in pairs), 5)


def seed_spread(row: Row) -> float:
    """How far apart the last losses of the seeds are."""
    return round(max(_last_losses(row)) - min(_last_losses(row)), 5)


def _last_losses(row: Row) -> list[float]:
    return [losses[-1] for losses in row["losses"].values()]


def describe_workload(workload: Workload, parameters: int, rounds: int) -> dict[str, Any]:
    """What was done, for the reader of the figures."""
    return {
        "model": workload.name,
        "weights": "random, the same in every row: they show cost, not quality",
        "parameters": parameters,
        "sizes": {n: v for n, v in vars(workload).items() if n not in ("batch_size", "tuning")},
        "batch_size": workload.batch_size,
        "tokens_a_step": workload.tokens_a_step,
        "padding": "none",
        "lora_r": workload.tuning.r,
        "lora_target_modules": workload.tuning.lora_target_modules,
        "step": "forward, backward, AdamW on float32 LoRA weights; no dropout",
        "epoch": f"{EPOCH_SAMPLES} samples, {EPOCH_SAMPLES // workload.batch_size} steps",
        "rounds": rounds,
        "loss_after_steps": rounds + 1,
    }


def print_table(result: dict[str, Any]) -> None:
    """Print rows and split to standard error, in 80 columns."""
    rows, model = result["rows"], result["workload"]["model"]
    main = ("MiB", "ratio", "epoch", "s/1k", "ratio (min)", "loss of seeds")
    cells = {
        row["config"]: (
            f"{row['peak_memory_mib']:.0f}",
            f"{row['memory_ratio']:.2f}",
            _minutes(row["epoch_s"]),
            f"{row['s_per_1k_tokens']:.3f}",
            f"{row['time_ratio']:.2f} ({row['time_ratio_min']:.2f})",
            " ".join(f"{loss:.3f}" for loss in _last_losses(row)),
        )
        for row in rows
    }
    _print_cells(f"{model}, random weights", main, cells)
    split = {
        row["config"]: [f"{row['memory_split_mib'][part]:.0f}" for part in PARTS] for row in rows
    }
    _print_cells("What the peak is made of, MiB", tuple(PARTS.values()), split)


def _print_cells(title: str, columns: Sequence[str], cells: Mapping[str, Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("config", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for config, row in cells.items():
        table.add_row(config, *row)
    Console(stderr=True).print(table)


def row_called(rows: Sequence[Row], name: str) -> Row:
    """The row of a name."""
    return next(row for row in rows if row["config"] == name)


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader of the table must know."""
    workload, machine = result["workload"], result["machine"]
    plain = row_called(result["rows"], PLAIN)
    sixteen = f"16-bit is {plain['precision']} here."
    if plain["precision"] == "fp32":
        sixteen = "enable_int8 = False is fp32, for want of 16-bit arithmetic or because asked for."
    return [
        *(f"{row['config']}: {', '.join(_settings(row))}." for row in result["rows"]),
        f"Weights are random: this is what a step costs, not how well a model does. An epoch is "
        f"{workload['epoch']} of {workload['tokens_a_step']:,} tokens; s/1k is for 1000 tokens.",
        f"{sixteen} Ratios are to {PLAIN}: of time, the median over the rounds, and of the lowest.",
        f"Loss after {workload['loss_after_steps']} steps, on the same batches in every row: int8 "
        f"is {result['loss']['gap']:.4f} from {PLAIN}, whose seeds are "
        f"{result['loss']['seed_spread']:.4f} apart.",
        PARTS_EXPLAINED,
        f"{machine['cpu']}, {machine['threads']} threads; int8: {', '.join(machine['int8']) or '-'}"
        f"; bf16: {', '.join(machine['bf16']) or '-'}; load {machine['load_before']} before, "
        f"{machine['load_after']} after.",
    ]


def _settings(row: Row) -> list[str]:
    kept = {"none": [], "int8": ["int8 base"]}.get(row["quantization"], [row["quantization"]])
    every = row["checkpoint_every"]
    recomputed = [f"checkpoint_every {every}"] if every else []
    products = ["oneDNN products"] if row["products"] == "onednn" else []
    own = [] if row["attention"] else ["torch's own attention"]
    return [row["precision"], *kept, *row["savers"], *recomputed, *products, *own]


def draw_plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Time of a step against peak memory, a point a row, as PNG."""
    # Not pyplot: it would pick a display and keep figures alive.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for row in rows:
        colour = "#b3541e" if row["quantization"] == "int8" else "#1f5f99"
        axes.scatter(row["peak_memory_mib"], row["step_s"], color=colour, zorder=3)
        axes.annotate(
            row["config"],
            (row["peak_memory_mib"], row["step_s"]),
            xytext=(6, 5),
            textcoords="offset points",
            fontsize=9,
        )
    axes.set(xlabel="peak memory of a step (MiB)", ylabel="time of a step (s)", title=title)
    axes.set_xlim(0, 1.25 * max(row["peak_memory_mib"] for row in rows))
    axes.set_ylim(0, 1.15 * max(row["step_s"] for row in rows))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    # Without the Software entry the file does not change with matplotlib's version string.
    figure.savefig(path, format="png", metadata={"Software": None})


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

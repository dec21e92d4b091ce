"""How far a run has come, and what a person sees of it: a progress bar, or plain lines."""

import sys
import time
from typing import Any

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table

from tuninglab.console import is_main_process, say

# Seconds between plain lines: enough to follow a log file, few enough to read it later.
PLAIN_INTERVAL_S = 5.0


class TrainingLog:
    """Shows loss, throughput and time left; a context manager around the training loop."""

    def __init__(self, total_steps: int, first_step: int = 0):
        self.total_steps = total_steps
        self.first_step = first_step
        self.started = time.monotonic()
        self.last_line = -PLAIN_INTERVAL_S
        self.bar: rich_progress.Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal and is_main_process():
            self.bar = rich_progress.Progress(
                rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TextColumn("{task.fields[note]}"),
                rich_progress.TimeRemainingColumn(),
                console=console,
            )
            self.task = self.bar.add_task("", total=total_steps, completed=first_step, note="")

    def __enter__(self) -> "TrainingLog":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()

    def show(self, line: dict[str, Any]) -> None:
        """Show a line of metrics.jsonl, of a training step or of a validation."""
        if "val_loss" in line:
            write = self.bar.console.print if self.bar else say
            write(f"step {line['step']}: val_loss {line['val_loss']:.4f}")
            return
        note = f"loss {line['loss']:.4f}, {line['tokens_per_s']:,.0f} tokens/s"
        if self.bar:
            self.bar.update(self.task, completed=line["step"], note=note)
            return
        now = time.monotonic()
        last = line["step"] >= self.total_steps
        if now - self.last_line >= PLAIN_INTERVAL_S or last:
            self.last_line = now
            done = max(line["step"] - self.first_step, 1)
            left = (now - self.started) / done * (self.total_steps - line["step"])
            say(f"step {line['step']}/{self.total_steps}: {note}, {left:.0f} s left")


def print_trainable(rows: list[dict[str, Any]], total_parameters: int) -> None:
    """Print the table of what trains to standard error, with its share of all parameters."""
    if not is_main_process():
        return
    trained = sum(row["parameters"] for row in rows)
    table = Table("module", "dtype", title="What trains", title_justify="left")
    table.add_column("parameters", justify="right")
    for row in rows:
        table.add_row(row["module"], row["dtype"], f"{row['parameters']:,}")
    table.add_section()
    table.add_row(
        f"all: {trained / total_parameters:.2%} of {total_parameters:,}", "", f"{trained:,}"
    )
    # A file or pipe has no width of its own; 100 holds the longest module names.
    width = None if sys.stderr.isatty() else 100
    Console(stderr=True, width=width).print(table)

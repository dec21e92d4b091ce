"""How far a run has come, and what a person sees of it: a progress bar, or plain lines."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tuninglab.console import is_main_process, say
from tuninglab.progress import INTERVAL_S, bars, duration


class TrainingLog:
    """Shows loss, throughput, memory and time left; a context manager around the training loop.

    Args:
        total_steps: that the run makes.
        first_step: after which it goes on; the time left is reckoned from what came since.
    """

    def __init__(self, total_steps: int, first_step: int = 0):
        self.total_steps = total_steps
        self.first_step = first_step
        self.started = time.monotonic()
        self.last_line = -INTERVAL_S
        self.shown = bars()
        self.bar: Any = None

    def __enter__(self) -> "TrainingLog":
        self.bar = self.shown.__enter__()
        if self.bar:
            total, done = self.total_steps, self.first_step
            self.task = self.bar.add_task("", total=total, completed=done, note="")
        else:
            say(f"training: {self.total_steps - self.first_step} steps")
        return self

    def __exit__(self, *error: Any) -> None:
        self.shown.__exit__(*error)

    def show(self, line: dict[str, Any]) -> None:
        """Show a line of metrics.jsonl, of a training step or of a validation."""
        if "val_loss" in line:
            write = self.bar.console.print if self.bar else say
            # Of several sets, the loss of each is in the file.
            values = {n: v for n, v in line.items() if n.startswith("val_") and "/" not in n}
            shown = {"val_loss": values.pop("val_loss"), **values}
            texts = (f"{name} {value:.4f}" for name, value in shown.items())
            write(f"step {line['step']}: {', '.join(texts)}")
            return
        note = note_of(line)
        if self.bar:
            self.bar.update(self.task, completed=line["step"], note=note)
            return
        now = time.monotonic()
        last = line["step"] >= self.total_steps
        if now - self.last_line >= INTERVAL_S or last:
            self.last_line = now
            done = max(line["step"] - self.first_step, 1)
            left = (now - self.started) / done * (self.total_steps - line["step"])
            say(f"step {line['step']}/{self.total_steps}: {note}, {duration(left)} left")


def note_of(line: Mapping[str, Any]) -> str:
    """Loss, throughput and memory of a training line of metrics.jsonl, those that it has."""
    parts = {"tokens_per_s": "tokens/s", "peak_memory_mib": "MiB"}
    known = [f"{line[key]:,.0f} {unit}" for key, unit in parts.items() if line.get(key) is not None]
    return ", ".join([f"loss {line['loss']:.4f}", *known])


def print_trainable(rows: list[dict[str, Any]], total_parameters: int) -> None:
    """Print the table of what trains to standard error, with its share of all parameters."""
    if not is_main_process():
        return
    trained = sum(row["parameters"] for row in rows)
    share = trained / total_parameters
    # A file or pipe has no width of its own; 100 holds the longest module names.
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 100)
    table = Table(title="What trains", title_justify="left")
    # Folded, where even a shortened name is too long: its end is what tells it from others.
    table.add_column("module", overflow="fold")
    table.add_column("dtype", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    others = max([len(row["dtype"]) for row in rows] + [len("dtype")]) + len("parameters")
    width = console.width - others - len("┃  ┃  ┃  ┃")
    names = shortened([row["module"] for row in rows], width)
    for row, name in zip(rows, names, strict=True):
        table.add_row(name, row["dtype"], f"{row['parameters']:,}")
    table.add_section()
    table.add_row(f"all: {share:.2%} of {total_parameters:,}", "", f"{trained:,}")
    console.print(table)


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Names of modules within `width` where that can be, by parts left out after the first.

    Names that differ stay different.
    """
    short = [_shortened(name, width) for name in names]
    # Two that differ only in what was left out keep it.
    return [new if short.count(new) == 1 else old for old, new in zip(names, short, strict=True)]


def _shortened(name: str, width: int) -> str:
    first, *rest = name.split(".")
    shorter = [f"{first}…{'.'.join(rest[left_out:])}" for left_out in range(1, len(rest))]
    return next((short for short in [name, *shorter] if len(short) <= width), name)

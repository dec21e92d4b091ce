"""Cost of a training step side by side: time, memory and loss of int8, 16-bit and their rivals."""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tuninglab.comparison.machine import describe_machine, is_busy, load_average, now
from tuninglab.comparison.memory import measure_memory
from tuninglab.comparison.results import (
    add_ratios,
    describe_workload,
    draw_plot,
    make_row,
    notes,
    print_table,
    row_called,
    seed_spread,
)
from tuninglab.comparison.timing import SEEDS, take_turns
from tuninglab.comparison.variants import (
    INT8,
    PLAIN,
    Variant,
    only_possible,
    standard_rows,
    with_products,
)
from tuninglab.comparison.workloads import (
    Bench,
    FlamingoWorkload,
    TextWorkload,
    Workload,
    save_random,
)
from tuninglab.config import FinetuneConfig, FlanT5Config, TrainingConfig
from tuninglab.console import Choices, say
from tuninglab.disk import whole_file, write_whole
from tuninglab.errors import UserError
from tuninglab.run_folder import git_commit, versions
from tuninglab.training.hardware import choose_precision

ALONE_ROUNDS = 3
FIGURES, PLOT = "comparison.json", "comparison.png"


def compare(config: FlanT5Config) -> dict[str, Any]:
    """Compare int8 with 16-bit and others at flan-t5-small's shape; writes a plot and the figures.

    Raises:
        UserError: the precision asked for does not work here, or the folder cannot be written.
        WorkError: a measurement failed.
    """
    return _compare(config, TextWorkload(tuning=config.tuning_config), "flan_t5_comparison")


def compare_flamingo(config: FinetuneConfig) -> dict[str, Any]:
    """The same for a Flamingo whose language model is 768 wide.

    Raises:
        UserError, WorkError: as `compare`.
    """
    return _compare(config, FlamingoWorkload(tuning=config.tuning_config), "flamingo_comparison")


def measure_alone(config: FlanT5Config) -> dict[str, Any]:
    """Time and peak memory of a step at flan-t5-small's shape, with the settings as they are.

    Raises:
        UserError: the settings need what is not there.
        WorkError: the measurement failed.
    """
    workload, device = TextWorkload(tuning=config.tuning_config), device_here()
    precision = choose_precision(config.precision, device.type, Choices())
    name = {"int8": INT8, "none": PLAIN}.get(config.base_format, config.base_format)
    variant = variant_of(config, name, precision)
    for missing in only_possible([variant])[1]:
        raise UserError(missing["reason"])
    say(f"Measuring the cost of a step at {workload.name}, with random weights.")
    result = measure([variant], workload, ALONE_ROUNDS, device, seeds=SEEDS[:1])
    row = result["rows"][0]
    say(
        f"A step of {workload.tokens_a_step:,} tokens takes {row['step_s']:.2f} s and "
        f"{row['peak_memory_mib']:.0f} MiB; {result['workload']['epoch']} take "
        f"{row['epoch_s'] / 60:.1f} minutes. Side by side with others: --compare"
    )
    return result


def variant_of(config: TrainingConfig, name: str, precision: str) -> Variant:
    """The row that stands for the settings of a run."""
    shape = config.base_format, tuple(config.savers), config.checkpoint_interval
    return Variant(name, precision, *shape, config.products)


def rows_of(config: TrainingConfig, device: torch.device) -> list[Variant]:
    """The rows to compare: int8 as these settings have it, plain as a run is by itself, rivals."""
    precision = choose_precision(config.precision, device.type, Choices())
    none: dict[str, Any] = {"memory_savers": None, "checkpoint_every": None}
    off = replace(
        config, enable_int8=False, quantization=None, activation_checkpointing=False, **none
    )
    plain = variant_of(off, PLAIN, precision)
    int8 = variant_of(replace(config, enable_int8=True, quantization=None), INT8, precision)
    return standard_rows(int8, plain, device)


def measure(
    variants: Sequence[Variant],
    workload: Workload,
    rounds: int,
    device: torch.device,
    seeds: Sequence[int] = SEEDS,
) -> dict[str, Any]:
    """Measure the rows that can be measured here: memory of each, then time in turns.

    Args:
        variants: the rows.
        workload: the shape.
        rounds: timed steps of every row for every seed.
        device: where.
        seeds: of LoRA and data.

    Returns:
        `rows`, `left_out`, `workload`, `machine`, `versions` and more, for JSON.

    Raises:
        WorkError: a measurement failed.
    """
    possible, left_out = only_possible(variants)
    for row in left_out:
        say(f"Left out: {row['config']}. {row['reason']}")
    machine: dict[str, Any] = {**describe_machine(device), "load_before": load_average()}
    if is_busy(machine["load_before"]):
        say(f"Other work runs here (load {machine['load_before']}): times will be uncertain.")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(workload, Path(folder), device)
        parameters = save_random(workload, bench.base)
        possible = with_products(possible, bench)
        # First, and each alone: in a process that holds nothing yet, beside one that does nothing.
        memories = []
        for variant in possible:
            memories.append(measure_memory(variant, bench))
            say(f"  memory of {variant.config}: {memories[-1]['peak_memory_mib']:.0f} MiB")
        measured = take_turns(possible, bench, rounds, seeds)
    machine["load_after"] = load_average()
    triples = zip(possible, measured, memories, strict=True)
    rows = [make_row(variant, workload, steps, memory) for variant, steps, memory in triples]
    return {
        "rows": rows,
        "left_out": left_out,
        "workload": describe_workload(workload, parameters, rounds),
        "machine": machine,
        "versions": versions(),
        "git_commit": git_commit(),
        "date": now(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def compare_rows(
    variants: Sequence[Variant], workload: Workload, rounds: int, device: torch.device | None = None
) -> dict[str, Any]:
    """Measure rows, among them those called INT8 and PLAIN, with ratios to the latter.

    Returns what `measure` does, and `ratio`: `time` and `memory` of INT8.

    Raises:
        WorkError: a measurement failed.
    """
    say(f"{workload.name}, random weights: {rounds} rounds for each of {len(SEEDS)} seeds.")
    measured = measure(variants, workload, rounds, device or device_here())
    int8, plain = (row_called(measured["rows"], name) for name in (INT8, PLAIN))
    add_ratios(measured["rows"], plain)
    ratio = {"time": int8["time_ratio"], "memory": int8["memory_ratio"]}
    loss = {"gap": int8["loss_gap"], "seed_spread": seed_spread(plain)}
    result = {"rows": measured.pop("rows"), "ratio": ratio, "loss": loss, **measured}
    print_table(result)
    for line in notes(result):
        say(line)
    return result


def device_here() -> torch.device:
    """The GPU that torch can use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_place(folder: Path, overwrite: bool) -> None:
    """Pass if nothing stands there, or an earlier comparison that may be replaced."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there - {FIGURES, PLOT}:
        raise UserError(
            f"{folder} is no comparison: it holds {min(there - {FIGURES, PLOT})}. Nothing of it is "
            "touched. Choose another --run_name."
        )
    if there and not overwrite:
        raise UserError(f"{folder} exists. Replace it: --overwrite; or choose another --run_name.")


def _compare(
    config: FlanT5Config | FinetuneConfig, workload: Workload, usual_name: str
) -> dict[str, Any]:
    folder = Path(config.output_dir) / (config.run_name or usual_name)
    _check_place(folder, config.overwrite or config.run_name is None)
    try:
        # Before ten minutes of work, not after them.
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
        raise UserError(f"{folder} cannot be made: {reason}. Change --output_dir.") from error
    device = device_here()
    result = compare_rows(rows_of(config, device), workload, config.rounds, device)
    write_whole(folder / FIGURES, json.dumps(result, indent=2) + "\n")
    with whole_file(folder / PLOT) as beside:
        draw_plot(result["rows"], f"{workload.name}, random weights", beside)
    say(f"Written: {folder / FIGURES}, {folder / PLOT}")
    return result

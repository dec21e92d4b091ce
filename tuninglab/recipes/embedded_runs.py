"""What the two demonstrations on embedded data have in common: whose run it is, and its scores."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tuninglab.config import TrainingConfig
from tuninglab.config.yaml_file import read_recipe
from tuninglab.console import say
from tuninglab.errors import UserError
from tuninglab.reporting.tables import percent


def check_own(run: Path, settings: type[TrainingConfig]) -> None:
    """Pass if there is no such run, or an earlier demonstration, which a new one replaces.

    Raises:
        UserError: it is a run of somebody's own data or model.
    """
    if (run / "config.yaml").is_file():
        earlier = read_recipe(run / "config.yaml")
        if not isinstance(earlier, settings) or not earlier.is_demo:
            raise UserError(
                f"{run} is no demo but a run of your own. Give a --run_name that is free."
            )


def print_scores(report: dict[str, Any], title: str, kinds: str, questions: str) -> None:
    """Print exact match by type and group of `questions`, and what the run cost."""
    scores, train = report["evaluation"], report["train"]
    columns = {"before": scores["before"], "after": scores["after"], **scores["controls"]}
    columns["prior"] = scores["prior"]
    table = Table(title=title, title_justify="left")
    table.add_column(kinds)
    for name in columns:
        table.add_column(name, justify="right", style="bold" if name == "after" else None)
    for part in ("by_type", "by_group"):
        for name in scores["after"].get(part, ()):
            table.add_row(name, *(percent(score[part][name]) for score in columns.values()))
        table.add_section()
    totals = [percent(score["exact_match"]) for score in columns.values()]
    table.add_row(f"all {scores['after']['count']} {questions}", *totals, style="bold")
    Console(stderr=True).print(table)
    say(
        f"Tuned {train['trainable_parameters']:,} parameters in {train['wall_s']:.0f} s at "
        f"{train['peak_memory_mib']:,.0f} MiB; the adapter has "
        f"{report['adapter_bytes'] / 1024:,.0f} KiB."
    )

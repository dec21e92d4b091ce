"""What a run says at its end: losses, scores beside those of models that do not look, its cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tuninglab.console import is_main_process, say
from tuninglab.errors import UserError, WorkError
from tuninglab.recipes.recipe import Foreseen
from tuninglab.reporting.tables import duration, looking, percent, size
from tuninglab.untrusted import MIB, shown


def tell_training(figures: dict[str, Any]) -> None:
    """Say what the training came to: losses, time, and rows that taught nothing."""
    say(
        f"Loss {figures['first_loss']:.4f} in the first step, {figures['last_loss']:.4f} in "
        f"the last of {figures['steps']}; {figures['wall_s']:.0f} s."
    )
    if figures["left_out"]:
        say(
            f"{figures['left_out']:,} rows taught nothing: their pictures could not be read "
            "(--on_bad_picture skip). Replace those that were named."
        )


def tell_planned(plan: Foreseen, figures: dict[str, Any]) -> None:
    """Say what was planned beside what was measured."""
    pairs: list[tuple[str, float, float, Callable[[float], str]]]
    pairs = [("peak memory", plan.peak_memory_mib * MIB, figures["peak_memory_mib"] * MIB, size)]
    # A run that stopped early, or went on from another start, took another time.
    if plan.train_s is not None and plan.steps == figures["steps"]:
        pairs.append(("training", plan.train_s, figures["wall_s"], duration))
    said = [
        f"{what} {show(planned)}, measured {show(measured)} ({planned / measured - 1:+.0%})"
        for what, planned, measured, show in pairs
        if measured
    ]
    say(f"Planned: {'; '.join(said)}.")


def tell_validation(evaluation: dict[str, Any]) -> None:
    """Say what the validation records showed: losses, and whether the tuned model looks."""
    before, after = (evaluation[when].get("val_loss") for when in ("before", "after"))
    if before is None or after is None:
        say("No validation records: nothing tells whether it learned. Add --val_split 0.1.")
        return
    chance = f"{evaluation['chance']['val_loss']:.2f} is blind guessing"
    frequent = evaluation.get("prior", {}).get("val_loss")
    if frequent is not None:
        chance += f", {frequent:.2f} knowing only how frequent the answers are"
    say(f"Validation loss {before:.4f} before, {after:.4f} after ({chance}).")
    scores = {**evaluation["controls"], "prior": evaluation.get("prior", {})}
    if "exact_match" in evaluation["after"]:
        controls = {name: score["exact_match"] for name, score in scores.items()}
        after = evaluation["after"]
        say(looking(after["exact_match"], controls, after["count"]))


def ended_before(run: Path) -> dict[str, Any]:
    """Say of a run that it ended at an earlier start, and what it gave: the figures of its report.

    Its page is written anew: it may be of one who watched, before a kill between the two reports.

    Raises:
        UserError: the report was damaged meanwhile.
    """
    from tuninglab.reporting.report import write_report
    from tuninglab.reporting.run_files import read_final

    report: Any = read_final(run)  # it is there: by it a run is known to have ended
    say(f"{run} has ended. To go on with it, give more --max_steps or --epochs.")
    try:
        tell_training(report["train"])
        tell_validation(report["evaluation"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{run / 'report.json'} lacks figures that every run writes, or holds others "
            f"({type(error).__name__}: {shown(str(error))}). Delete it: then the same command "
            "scores again and writes it anew."
        ) from error
    if is_main_process():
        try:
            write_report(run)
        # It has ended all the same.
        except (UserError, WorkError) as error:
            say(f"Its page stays as it is: {error}")
    say(
        f"Adapter: {run / 'adapter'} ({report['adapter_bytes']:,} bytes). Report: {run}/report.html"
    )
    return report


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

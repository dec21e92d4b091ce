"""The main job on the embedded default: what `make demo` runs."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tuninglab.config import DemoConfig, FinetuneConfig
from tuninglab.config.yaml_file import read_recipe
from tuninglab.console import is_main_process, say
from tuninglab.embedded.task import write_data
from tuninglab.errors import UserError
from tuninglab.recipes.flamingo import finetune
from tuninglab.reporting.tables import percent

# Chosen on the validation split (tools/choose_demo_settings.py): fits three minutes on 2 cores.
PICTURES = 6000
SETTINGS = {"batch_size": 16, "learning_rate": 3e-3, "workers": 1, "eval_steps": 125}


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Tune the embedded Flamingo on its task and show what it learned; returns the report.

    Raises:
        UserError, WorkError, KeyboardInterrupt: as `finetune`.
    """
    if config.write_data is not None:
        write_data(Path(config.write_data), PICTURES)
        return {"data": config.write_data}
    run = Path(config.output_dir) / config.run_name
    check_own(run)
    say("A small Flamingo, pre-trained on captions, learns to answer questions about pictures.")
    report = finetune(
        FinetuneConfig(
            run_name=config.run_name,
            output_dir=config.output_dir,
            max_steps=config.max_steps,
            precision=config.precision,
            seed=config.seed,
            embedded_pictures=PICTURES,
            overwrite=True,
            **SETTINGS,
        )
    )
    if is_main_process():
        show(report, run)
    return report


def check_own(run: Path) -> None:
    """Pass if there is no such run, or it is an earlier demo, which a new one replaces.

    Raises:
        UserError: it is a run of somebody's own data or model.
    """
    if not (run / "config.yaml").is_file():
        return
    earlier = read_recipe(run / "config.yaml")
    own = not isinstance(earlier, FinetuneConfig) or earlier.lang_encoder is not None
    if own or earlier.data is not None or earlier.model != "embedded":
        raise UserError(f"{run} is no demo but a run of your own. Choose another --run_name.")


def show(report: dict[str, Any], run: Path) -> None:
    """Print the scores by question type, and where to go on, to standard error."""
    console, scores = Console(stderr=True), report["evaluation"]
    columns = {
        "before": scores["before"],
        "after": scores["after"],
        "blank": scores["controls"]["blank"],
        "shuffled": scores["controls"]["shuffled"],
        "prior": scores["prior"],
    }
    table = Table(title="Exact match on held-out questions", title_justify="left")
    table.add_column("question type")
    for name in columns:
        table.add_column(name, justify="right", style="bold" if name == "after" else None)
    for kind in scores["after"]["by_type"]:
        table.add_row(kind, *(percent(c["by_type"][kind]) for c in columns.values()))
    table.add_section()
    for group in scores["after"]["by_group"]:
        table.add_row(group, *(percent(c["by_group"][group]) for c in columns.values()))
    table.add_section()
    total = [percent(c["exact_match"]) for c in columns.values()]
    table.add_row(f"all {scores['after']['count']} questions", *total, style="bold")
    console.print(table)
    train = report["train"]
    say("blank: the tuned model sees grey pictures; shuffled: pictures of other questions;")
    say("prior: always the most frequent answer of the type. Only a model that looks beats them.")
    say()
    say(f"Tuned {train['trainable_parameters']:,} parameters in {train['wall_s']:.0f} s;")
    say(f"the adapter has {report['adapter_bytes'] / 1024:,.0f} KiB.")
    say(f"See what it answered:  {run / 'report.html'}")
    say(f"Talk to it:            tuninglab chat {run} --terminal --image PICTURE")

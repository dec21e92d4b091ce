"""The main job on the embedded default: what `make demo` runs."""

import shlex
from pathlib import Path
from typing import Any

from tuninglab.config import DemoConfig, FinetuneConfig
from tuninglab.console import is_main_process, program, say
from tuninglab.embedded.task import write_data
from tuninglab.recipes.embedded_runs import check_own
from tuninglab.recipes.ending import print_scores
from tuninglab.recipes.flamingo import finetune

# Chosen on the validation split (tools/choose_demo_settings.py): fits three minutes of 2 cores that
# have bf16 arithmetic.
PICTURES = 9000
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
    check_own(run, FinetuneConfig)
    say("A small Flamingo, pre-trained on captions, learns to answer questions about pictures.")
    report = finetune(
        FinetuneConfig(
            run_name=config.run_name,
            output_dir=config.output_dir,
            max_steps=config.max_steps,
            precision=config.precision,
            seed=config.seed,
            threads=config.threads,
            embedded_pictures=PICTURES,
            overwrite=True,
            **SETTINGS,
        )
    )
    if is_main_process():
        show(report, run)
    return report


def show(report: dict[str, Any], run: Path) -> None:
    """Print the scores by question type, and where to go on, to standard error."""
    print_scores(report, "Exact match on held-out questions", "question type", "questions")
    say("blank: the tuned model sees grey pictures; shuffled: pictures of other questions;")
    say("prior: always the most frequent answer of the type. Only a model that looks beats them.")
    say()
    say(f"See what it answered:  {run / 'report.html'}")
    # A picture that is there, so that the line can be pasted as it stands.
    talk = shlex.join(["chat", str(run), "--image", str(run / "pictures" / "000.png")])
    say(f"Talk to it:            {program()} {talk}")

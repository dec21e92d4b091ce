"""What there is to go on from in a run folder, and the command that does."""

import shlex
from pathlib import Path

from tuninglab.config.yaml_file import read_recipe
from tuninglab.console import program
from tuninglab.run_folder.environment import read_starts


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder holds something to go on from."""
    return any((run / "checkpoints").glob("step-*"))


def how_to_end(run: Path) -> str:
    """What to do with a run that has not ended: a command to paste, where there is one."""
    place = "" if str(run.parent) == "runs" else f" --output_dir {shlex.quote(str(run.parent))}"
    if not has_checkpoint(run):
        return f"It saved nothing to go on from: start it again with --overwrite{place}"
    recipe = read_recipe(run / "config.yaml").recipe
    starts = read_starts(run)
    # As many as before: another number goes on too, where it can share out the rows of a step.
    processes = starts[-1].get("processes") if starts else 1
    command = f"{program()} {recipe}"
    if isinstance(processes, int) and processes > 1:
        # The script lies in a checkout only, and is that of one recipe.
        script = recipe == "finetune" and Path("fine_tuning.py").is_file()
        work = "fine_tuning.py" if script else f"-m tuninglab {recipe}"
        torchrun = program("torchrun", "torch.distributed.run")
        command = f"{torchrun} --nproc_per_node={processes} {work}"
    return f"Let it go on: {command} --resume --run_name {shlex.quote(run.name)}{place}"


def elsewhere(run: Path) -> str:
    """Where a run of this name is instead, as a hint; empty if nowhere near.

    `cd tuninglab && python flamingo.py` leaves its runs in tuninglab/runs, not in runs.
    """
    near = (Path(beside) / run for beside in ("tuninglab", ".."))
    found = next((path for path in near if (path / "config.yaml").is_file()), None)
    if found is None or run.is_absolute():
        return ""
    return f"Did you mean {found}? Runs lie in the directory that they were started from."

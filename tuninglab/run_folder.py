"""The run folder: its naming rules, its files, and what a resumed run takes over from it."""

import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from tuninglab.config.training import TrainingConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.config.yaml_file import config_yaml, read_config, read_recipe
from tuninglab.console import Choices, is_main_process, program
from tuninglab.disk import remove_folder, write_whole
from tuninglab.errors import UserError, WorkError

Config = TypeVar("Config", bound=TrainingConfig)

# What the figures of a run or measurement depend on; not all of them need be there.
PACKAGES = (
    *("tuninglab", "torch", "transformers", "peft", "accelerate", "safetensors"),
    *("bitsandbytes", "pillow", "numpy"),
)
# All that a run writes; --overwrite deletes these and nothing else.
FILES = (
    *("config.yaml", "environment.json", "trainable.json", "metrics.jsonl"),
    *("answers.json", "report.json", "report.html", "loss.png"),
)
FOLDERS = ("adapter", "checkpoints", "base", "pictures")


@dataclass(frozen=True)
class RunFolder:
    """One run on disk. Made by `plan`, which checks; nothing is written before `create`."""

    path: Path
    resumed: bool = False

    @classmethod
    def plan(cls, config: TrainingConfig) -> "RunFolder":
        """Decide on the folder of a run and check that it may be written.

        Raises:
            UserError: the name is taken, is no run folder, or the place is not writable.
        """
        parent = Path(config.output_dir)
        name = config.run_name or _free_name(parent)
        run = cls(parent / name, config.resume)
        # Under torchrun the first process may have made the folder before another one looks.
        if is_main_process():
            run._check_place(config)
        return run

    def _check_place(self, config: TrainingConfig) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file, not a run folder. Choose another --run_name.")
        if self.resumed and not (self.path / "config.yaml").is_file():
            hint = elsewhere(self.path) or "Check --run_name."
            raise UserError(f"--resume: {self.path} is no run folder. {hint}")
        holds_files = self.path.is_dir() and any(self.path.iterdir())
        if holds_files and not self.resumed:
            self._check_taken(config.overwrite)
        place = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        try:
            # Trying is the only sure test: permissions say nothing about read-only mounts.
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise UserError(
                f"{place} cannot be written to ({error.strerror}). Choose another --output_dir."
            ) from error

    def _check_taken(self, overwrite: bool) -> None:
        if not overwrite:
            go_on = "Go on with it: --resume; replace" if has_checkpoint(self.path) else "Replace"
            raise UserError(
                f"{self.path} exists. {go_on} it: --overwrite; or choose another --run_name."
            )
        if self.path.is_symlink() or not (self.path / "config.yaml").is_file():
            raise UserError(
                f"--overwrite: {self.path} is not a run folder (no config.yaml), so it is left "
                "alone. Choose another --run_name."
            )

    def create(self, config: TrainingConfig) -> None:
        """Make the folder with config.yaml, from the main process; an old run in it goes.

        Raises:
            UserError: the place cannot be written to.
        """
        if not is_main_process():
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.resumed:
                self._clear()
            self.write("config.yaml", config_yaml(replace(config, run_name=self.path.name)))
        except (OSError, WorkError) as error:
            raise UserError(f"{self.path} cannot be made: {error}. Change --output_dir.") from error

    def _clear(self) -> None:
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in FOLDERS:
            remove_folder(self.path / name)

    def resumed_config(self, config: Config) -> Config:
        """Settings of a resumed run: those it was started with, with what this call changes.

        Raises:
            UserError: a setting was changed that the steps made so far depend on.
        """
        saved = read_config(self.path / "config.yaml", type(config))
        # Runs from before that setting trained no rows: their checkpoints hold none.
        name, tuning = "train_answer_tokens", saved.tuning_config
        if isinstance(tuning, TuningConfig) and f"tuning_config.{name}" not in (saved.typed or ()):
            saved = replace(saved, tuning_config=replace(tuning, **{name: "false"}))
        # And multiplied as torch does by itself.
        if "products" not in (saved.typed or ()):
            saved = replace(saved, products="torch")
        return config.going_on_from(saved)

    @property
    def adapter(self) -> Path:
        """Folder of the trained adapter."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def adapter_bytes(self) -> int:
        """Size of the adapter folder on disk; 0 before it is there."""
        return sum(file.stat().st_size for file in self.adapter.glob("*"))

    def write(self, name: str, content: str | dict | list) -> None:
        """Write a file of the run, whole, from the main process; data becomes JSON.

        Raises:
            WorkError: the disk is full.
        """
        if not is_main_process():
            return
        if not isinstance(content, str):
            content = json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
        write_whole(self.path / name, content)

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, from the main process.

        Raises:
            WorkError: the disk is full.
        """
        if not is_main_process():
            return
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise WorkError(f"{path} could not be written: {error}. Free some space.") from error

    def cut_metrics(self, step: int) -> None:
        """Drop the lines after a step: a run that goes on from there writes them again."""
        path = self.path / "metrics.jsonl"
        if not is_main_process() or not path.exists():
            return
        kept = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            # A process killed while writing leaves half a line, always the last one.
            with suppress(ValueError):
                kept += f"{line}\n" if json.loads(line)["step"] <= step else ""
        write_whole(path, kept)

    def write_environment(self, choices: Choices, threads: int, device: str) -> None:
        """Add this start to environment.json: on what, and why the automatic choices were made.

        Raises:
            WorkError: the disk is full.
            UserError: the file is damaged.
        """
        start = {
            "versions": versions(),
            "platform": platform.platform(),
            "device": device,
            "threads": threads,
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "git_commit": git_commit(),
            "command": sys.argv,
            "choices": choices.made,
        }
        # The earlier parts of a resumed run were computed on what they name.
        self.write("environment.json", [*(read_starts(self.path) if self.resumed else []), start])


def read_starts(run: Path) -> list[dict[str, Any]]:
    """The parts of environment.json, one a start, oldest first; none if there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    path = run / "environment.json"
    if not path.is_file():
        return []
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: damaged. Restore or delete it.") from error
    # Version 0.1 wrote one object, of the last start.
    return [part for part in (parts if isinstance(parts, list) else [parts]) if type(part) is dict]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


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
    # Order and loss depend on the number of processes: a checkpoint takes no other.
    processes = starts[-1].get("processes", 1) if starts else 1
    command = f"{program()} {recipe}"
    if processes > 1:
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


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, `-dirty` if changed; None outside one."""
    package = Path(__file__).parent
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        # A package inside somebody's environment must not report that project's commit.
        for command in (["ls-files", "--error-unmatch", Path(__file__).name], describe):
            done = subprocess.run(
                ["git", "-C", str(package), *command], capture_output=True, text=True, timeout=10
            )
            if done.returncode:
                return None
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()


def _free_name(parent: Path) -> str:
    names = (f"run_{number}" for number in itertools.count(1))
    return next(name for name in names if not (parent / name).exists())

"""The run folder: its naming rules, its files, and what a resumed run takes over from it."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from tuninglab.config.training import TrainingConfig
from tuninglab.config.yaml_file import CALL_ONLY, config_yaml, read_config, read_recipe
from tuninglab.console import Choices, is_main_process
from tuninglab.disk import write_whole
from tuninglab.errors import UserError, WorkError

Config = TypeVar("Config", bound=TrainingConfig)

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "pillow", "numpy")
# All that a run writes; --overwrite deletes these and nothing else.
FILES = (
    *("config.yaml", "environment.json", "trainable.json", "metrics.jsonl"),
    *("answers.json", "report.json", "report.html", "loss.png"),
)
FOLDERS = ("adapter", "checkpoints", "base", "pictures")
# Settings that may differ when a run goes on: none of them changes what was computed so far.
CHANGEABLE = (
    *("max_steps", "epochs", "workers", "logging_steps", "save_steps", "eval_steps"),
    *("output_dir", "run_name", *CALL_ONLY),
)


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
            raise UserError(f"--resume: {self.path} is no run folder. Check --run_name.")
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
            if (self.path / name).exists():
                shutil.rmtree(self.path / name)

    def resumed_config(self, config: Config) -> Config:
        """Settings of a resumed run: those it was started with, with what this call changes.

        Raises:
            UserError: a setting was changed that the steps made so far depend on.
        """
        saved = read_config(self.path / "config.yaml", type(config))
        defaults = type(config)()
        changes, refused = {}, []
        for name in (field.name for field in fields(config)):
            given, before = getattr(config, name), getattr(saved, name)
            # A flag at its default reads as not given: `--resume --run_name X` is enough.
            if name not in CALL_ONLY and given in (before, getattr(defaults, name)):
                continue
            if name in CHANGEABLE:
                changes[name] = given
            else:
                refused.append(f"--{name} is {given!r}, but the run was started with {before!r}.")
        if refused:
            hint = "Leave these flags out to go on, or start a new run with another --run_name."
            raise UserError("\n".join([*refused, hint]))
        return replace(saved, **changes)

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
        # A process killed while writing leaves half a line, always the last one.
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _is_json(line)]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_whole(path, "".join(line + "\n" for line in kept))

    def write_environment(self, choices: Choices, threads: int, device: str) -> None:
        """Write environment.json: what the run ran on, and why the automatic choices were made."""
        packages = {name: version(name) for name in PACKAGES}
        self.write(
            "environment.json",
            {
                "versions": {"python": platform.python_version(), **packages},
                "platform": platform.platform(),
                "device": device,
                "threads": threads,
                "processes": int(os.environ.get("WORLD_SIZE", "1")),
                "git_commit": git_commit(),
                "command": sys.argv,
                "choices": choices.made,
            },
        )


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder holds something to go on from."""
    return any((run / "checkpoints").glob("step-*"))


def how_to_end(run: Path) -> str:
    """What to do with a run that has not ended."""
    if has_checkpoint(run):
        recipe = read_recipe(run / "config.yaml").recipe
        return f"Let it go on: tuninglab {recipe} --resume --run_name {run.name}{_place(run)}"
    return f"It saved nothing to go on from: start it again with --overwrite{_place(run)}"


def _place(run: Path) -> str:
    return "" if str(run.parent) == "runs" else f" --output_dir {run.parent}"


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
    number = 1
    while (parent / f"run_{number}").exists():
        number += 1
    return f"run_{number}"


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True

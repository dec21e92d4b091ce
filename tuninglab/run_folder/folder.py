"""One run on disk: where it may be, its files, and what a resumed run takes over from them."""

import itertools
import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tuninglab.config.training import TrainingConfig
from tuninglab.config.tuning import TuningConfig
from tuninglab.config.yaml_file import config_yaml, read_config
from tuninglab.console import Choices, is_main_process, say
from tuninglab.disk import write_whole
from tuninglab.errors import UserError, WorkError
from tuninglab.run_folder import lock, ownership
from tuninglab.run_folder.environment import read_starts, this_start
from tuninglab.run_folder.going_on import elsewhere, has_checkpoint
from tuninglab.untrusted import read_text

Config = TypeVar("Config", bound=TrainingConfig)

# Of a million steps it has 300 MB.
MOST_METRICS = 2**30
# What a run writes last, in this order.
ENDING = ("report.json", "report.html")


@dataclass
class RunFolder:
    """One run on disk. Made by `plan`, which checks; nothing is written before `create`.

    Args:
        path: of the folder.
        resumed: whether the run goes on from what is there.
        made_up: whether another name will do, should this one be taken meanwhile.
        overwrite: whether an old run may be there, to be deleted.
        checkpoint: that a resumed run goes on from.
        ended: whether it is there already, whole (`--resume auto`).
    """

    path: Path
    resumed: bool = False
    made_up: bool = False
    overwrite: bool = False
    checkpoint: Path | None = None
    ended: bool = False

    @classmethod
    def plan(cls, config: TrainingConfig) -> "RunFolder":
        """Decide on the folder of a run and check that it may be written.

        Raises:
            UserError: the name is taken, is no run folder, or the place is not writable.
        """
        parent = Path(config.output_dir)
        name = config.run_name or _free_name(parent)
        resumed = config.resume is True
        run = cls(parent / name, resumed, config.run_name is None, config.overwrite)
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
            self._check_taken()
        place = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        try:
            # Trying is the only sure test: permissions say nothing about read-only mounts.
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise UserError(
                f"{place} cannot be written to ({error.strerror}). Choose another --output_dir."
            ) from error

    def _check_taken(self) -> None:
        if not self.overwrite:
            go_on = "Go on with it: --resume; replace" if has_checkpoint(self.path) else "Replace"
            raise UserError(
                f"{self.path} exists. {go_on} it: --overwrite; or choose another --run_name."
            )
        if not ownership.is_ours(self.path):
            raise UserError(
                f"--overwrite: {self.path} is not a run folder of tuninglab, so it is left alone. "
                "Choose another --run_name."
            )
        ownership.check_nothing_foreign(self.path)

    def create(self, config: TrainingConfig, further: bool = True) -> None:
        """Make the folder with config.yaml, from the main process; an old run in it goes.

        Args:
            config: what to keep of the settings.
            further: whether a resumed run has steps to make. Then the report of an earlier end
                goes: that one is there says that the run has ended as config.yaml has it.

        Raises:
            UserError: the place cannot be written to, or another process came first.
        """
        if not is_main_process():
            return
        try:
            if not self.resumed:
                self._make()
            elif further:
                for name in ENDING:
                    (self.path / name).unlink(missing_ok=True)
            self.write("config.yaml", config_yaml(replace(config, run_name=self.path.name)))
        except (OSError, WorkError) as error:
            raise UserError(f"{self.path} cannot be made: {error}. Change --output_dir.") from error

    def _make(self) -> None:
        while True:
            try:
                self.path.mkdir(parents=True, exist_ok=not self.made_up)
                break
            except FileExistsError:
                if not self.made_up:
                    raise
                self.path = self.path.parent / _free_name(self.path.parent)
        # Since `plan`, others may have come.
        if any(path.name != ownership.MARKER for path in self.path.iterdir()):
            self._check_taken()
        ownership.mark(self.path)
        lock.take(self.path)
        if not self.overwrite and any(self.path.glob("[!.]*")):
            lock.release(self.path)
            self._check_taken()
        ownership.clear(self.path)

    def hold(self) -> None:
        """Keep other processes from writing into the run that goes on, from the main process.

        Raises:
            UserError: another one does already, or the place cannot be written to.
        """
        if not is_main_process():
            return
        try:
            ownership.mark(self.path)
            lock.take(self.path)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written to: {error.strerror}.") from error

    def release(self) -> None:
        """Let other processes write into the folder again, from the main process."""
        if is_main_process():
            lock.release(self.path)

    def resumed_config(self, config: Config) -> Config:
        """Settings of a resumed run: those it was started with, with what this call changes.

        Raises:
            UserError: a setting was changed that the steps made so far depend on.
        """
        path = self.path / "config.yaml"
        saved = read_config(path, type(config))
        try:
            saved.validate()
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        # Runs from before that setting trained no rows: their checkpoints hold none.
        name, tuning = "train_answer_tokens", saved.tuning_config
        if isinstance(tuning, TuningConfig) and f"tuning_config.{name}" not in (saved.typed or ()):
            saved = replace(saved, tuning_config=replace(tuning, **{name: "false"}))
        # And multiplied as torch does by itself.
        if "products" not in (saved.typed or ()):
            saved = replace(saved, products="torch")
        going_on = config.going_on_from(saved)
        going_on.check_best()
        ends = [(settings.epochs, settings.max_steps) for settings in (saved, going_on)]
        if ends[0] != ends[1] and going_on.lr_scheduler != "constant":
            say(f"The {going_on.lr_scheduler} learning rate is planned anew, to the new last step.")
        return going_on

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

    def cut_metrics(self, step: int, last_line: int = 0) -> None:
        """Drop the lines after a step: a run that goes on from there writes them again.

        Args:
            step: the run goes on after it.
            last_line: of which the last line until then is; 0: none was due.

        Raises:
            UserError: the file is gone or damaged.
        """
        path = self.path / "metrics.jsonl"
        if not is_main_process() or not (path.exists() or last_line):
            return
        text = read_text(path, MOST_METRICS, "metrics of the run") if path.exists() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        kept: list[str] = []
        steps: set[int] = set()
        for number, line in enumerate(lines, 1):
            at = _step_of(line)
            # A process killed while writing leaves half a line, always the last one.
            if at is None and number < len(lines):
                raise UserError(f"{path}, line {number} is damaged. Restore or delete that line.")
            if at is not None and at <= step:
                kept.append(f"{line}\n")
                steps.add(at)
        if last_line and last_line not in steps:
            raise UserError(
                f"{path} lacks step {last_line}, which was written: it is gone or damaged. Restore "
                f'it. To go on without what it held, write {{"step": {last_line}}} into it.'
            )
        write_whole(path, "".join(kept))

    def write_environment(self, choices: Choices, threads: int, device: str) -> None:
        """Add this start to environment.json: on what, and why the automatic choices were made.

        Raises:
            WorkError: the disk is full.
            UserError: the file is damaged.
        """
        start = this_start(choices, threads, device)
        # The earlier parts of a resumed run were computed on what they name.
        self.write("environment.json", [*(read_starts(self.path) if self.resumed else []), start])


def _step_of(line: str) -> int | None:
    """The step of a line of metrics.jsonl; None if it is no such line."""
    with suppress(ValueError, RecursionError, KeyError, TypeError):
        step = json.loads(line)["step"]
        return step if type(step) is int else None
    return None


def _free_name(parent: Path) -> str:
    names = (f"run_{number}" for number in itertools.count(1))
    return next(name for name in names if not (parent / name).exists())

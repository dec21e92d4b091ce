"""Figures of a run for trackers (TensorBoard, W&B, MLflow ...), which never stand in its way.

Each tracker works in a thread of its own: whatever it waits for, the training does not. One that
fails is told of once, and the run goes on without it; metrics.jsonl has all that it would have had.
"""

import difflib
import json
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from queue import Full, Queue
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType

from tuninglab.config.fields import leaves, marked
from tuninglab.config.marks import Mark
from tuninglab.config.training import TrainingConfig
from tuninglab.console import is_main_process, say
from tuninglab.errors import UserError
from tuninglab.progress import working
from tuninglab.run_folder import RunFolder
from tuninglab.training.checkpoint import step_of
from tuninglab.training.tracked_answers import show
from tuninglab.untrusted import MIB, read_json, shown

# What runs are under in trackers of many projects.
PROJECT = "tuninglab"
# The folder of TensorBoard's files in that of the run, and the file of what the others call it.
TENSORBOARD, NAMES = "tensorboard", "trackers.json"
# Lines that may wait for a tracker, and for how long the end of a run waits for it.
MOST_WAITING = 10_000
CLOSING_S = 60.0
# What trackers tell their makers of by themselves is nobody's wish.
QUIET = {
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "DO_NOT_TRACK": "1",
}

# One of accelerate's, whose classes differ in what they can.
Tracker = Any
Job = Callable[[Tracker], None]


def check_trackers(names: Sequence[str] | None) -> None:
    """Pass if there are such trackers, and they are installed.

    Raises:
        UserError: one is unknown (the nearest is given), or its package is missing.
    """
    for name in names or ():
        if name not in LOGGER_TYPE_TO_CLASS:
            near = difflib.get_close_matches(name.lower(), LOGGER_TYPE_TO_CLASS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise UserError(f"--track {shown(name)} is unknown.{hint} Known: {known}.")
        # Of classes that a program has registered itself there is nothing to install.
        if name in LoggerType.list() and name not in map(str, get_available_trackers()):
            raise UserError(
                f"--track {name}: its package is not installed (pip install {name}). Install it, "
                "or leave it out: metrics.jsonl has the same figures."
            )


class Trackers:
    """Takes every line of metrics.jsonl, and answers, for all trackers of a run.

    Args:
        threads: one for each tracker.
    """

    def __init__(self, threads: Sequence["_Thread"] = ()):
        self.threads = threads

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a line of metrics.jsonl."""
        kinds = (int, float)
        values = {k: v for k, v in line.items() if k != "step" and isinstance(v, kinds)}
        for thread in self.threads:
            if _kind(line) not in thread.told:
                thread.give(lambda tracker: tracker.log(values, step=line["step"]))

    def show_answers(self, run_dir: Path, cards: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show what was answered, with the pictures that were asked about.

        Args:
            run_dir: the run folder, with the pictures.
            cards: what answers.json holds.
            step: after which it was answered.
        """
        for thread in self.threads if cards else ():
            thread.give(lambda tracker: show(tracker, run_dir, cards, step))

    def close(self) -> None:
        """Let the trackers end, and wait for that, but not long."""
        for thread in self.threads:
            thread.give(None)
        with working("waiting for the trackers to take everything"):
            for thread in self.threads:
                thread.join()


class _Thread:
    """A tracker in a thread.

    Args:
        name: of the tracker.
        start: begins its run there, or goes on with it.
        told: the kinds of the lines that it was given in an earlier start of the run.
    """

    def __init__(self, name: str, start: Callable[[], Tracker], told: set[Any]):
        self.name, self.start, self.told = name, start, told
        self.over = threading.Event()
        self.waiting: Queue[Job | None] = Queue(MOST_WAITING)
        # The process does not wait for it at its end.
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def give(self, job: Job | None) -> None:
        """Have the tracker do something, in its time; None: end."""
        if self.over.is_set():
            return
        try:
            self.waiting.put_nowait(job)
        except Full:
            self._give_up(f"it has not taken {MOST_WAITING:,} lines")

    def join(self) -> None:
        """Wait until it has ended."""
        self.thread.join(CLOSING_S)
        if self.thread.is_alive() and not self.over.is_set():
            self._give_up(f"it has not taken everything within {CLOSING_S:.0f} s")

    def _work(self) -> None:
        try:
            tracker = self.start()
            while (job := self.waiting.get()) is not None and not self.over.is_set():
                job(tracker)
            tracker.finish()
        # Whatever a tracker meets with, no network or no login, is not the run's affair.
        except (Exception, SystemExit) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            self._give_up(shown(text))

    def _give_up(self, reason: str) -> None:
        if not self.over.is_set():
            self.over.set()
            say(f"--track {self.name}: {reason}. The run goes on without it.")


@contextmanager
def open_trackers(config: TrainingConfig, run: RunFolder) -> Iterator[Trackers]:
    """The trackers of a run, from the main process; while they work, they ask and print nothing.

    A run that goes on does so in the trackers that it had. TensorBoard is told that the steps after
    the checkpoint come again; others have them, and do not get them twice.

    Args:
        config: the settings, whose `track` was checked.
        run: its folder, which is made.
    """
    names = list(dict.fromkeys(config.track or ()))
    if not names or not is_main_process():
        yield Trackers()
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    before = sys.stdin
    # Results alone go to standard output, and a question would wait for nobody.
    with redirect_stdout(sys.stderr), open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        trackers = Trackers(_threads(names, config, run))
        try:
            yield trackers
        finally:
            trackers.close()
            sys.stdin = before


def _threads(names: Sequence[str], config: TrainingConfig, run: RunFolder) -> list[_Thread]:
    kept = _names_of(run) if run.resumed else {}
    step = step_of(run.checkpoint) if run.checkpoint else 0
    lines = _lines_after(run, step) if run.resumed else set()
    # Several threads write it.
    lock, found = threading.Lock(), []
    for name in names:
        earlier = kept.get(name)

        def start(name: str = name, earlier: str | None = earlier) -> Tracker:
            tracker, known_as = _start(name, earlier, config, run, step)
            with lock:
                kept[name] = known_as
                run.write(NAMES, kept)
            return tracker

        told = lines if earlier and name != TENSORBOARD else set()
        if run.resumed and not earlier:
            say(f"--track {name}: the steps from here on, as it had none of this run before.")
        found.append(_Thread(name, start, told))
    return found


def _start(
    name: str, earlier: str | None, config: TrainingConfig, run: RunFolder, step: int
) -> tuple[Tracker, str]:
    """Begin a tracker's run, or go on with an earlier one; returns what it is called there, too."""
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    known_as = earlier or uuid.uuid4().hex[:12]
    options: dict[str, Any] = {}
    project, place = PROJECT, run.path.parent
    match name:
        case "tensorboard":
            # As `tensorboard --logdir runs` looks for it; steps from this one on come again.
            project, place, known_as = TENSORBOARD, run.path, TENSORBOARD
            options = {"purge_step": step + 1} if earlier else {}
        case "wandb":
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            # What the terminal shows stays here.
            settings = {"console": "off", "login_timeout": 10}
            options = {"id": known_as, "name": run.path.name, "resume": "allow"}
            options |= {"settings": settings}
        case "trackio":
            options = {"name": f"{run.path.name}-{known_as}", "resume": "allow", "embed": False}
        case "mlflow":
            options = {"run_name": run.path.name, "run_id": earlier}
    places = [str(place)] if kind.requires_logging_directory else []
    tracker = kind(project, *places, **options)
    tracker.start()
    if name == "mlflow":
        known_as = tracker.tracker.info.run_id
    if not earlier:
        _store(tracker, flat_settings(config))
    return tracker, known_as


def _store(tracker: Tracker, values: dict[str, Any]) -> None:
    """Keep the settings with the tracker's run."""
    if tracker.name != TENSORBOARD:
        tracker.store_init_configuration(values)
        return
    # accelerate has them in a folder beside, which TensorBoard shows as a run of its own.
    from torch.utils.tensorboard.summary import hparams

    for summary in hparams(values, {}):
        tracker.tracker.file_writer.add_summary(summary)


def flat_settings(config: TrainingConfig) -> dict[str, Any]:
    """The settings of a run as trackers take them: by name, each a number, a text or a truth."""
    call = marked(type(config), Mark.CALL)
    values = {name: v for name, v in leaves(config).items() if name.partition(".")[0] not in call}
    plain = (bool, int, float, str)
    return {name: v if isinstance(v, plain) else str(v) for name, v in values.items()}


def _names_of(run: RunFolder) -> dict[str, str]:
    """What earlier starts of a run are called in their trackers."""
    path = run.path / NAMES
    kept = read_json(path, MIB, "trackers of the run") if path.exists() else {}
    pairs = kept.items() if isinstance(kept, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, str)}


def _lines_after(run: RunFolder, step: int) -> set[Any]:
    """The kinds of the lines that were written after a step and come again."""
    path, found = run.path / "metrics.jsonl", set()
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as lines:
        for text in lines:
            with suppress(ValueError, RecursionError, TypeError, KeyError):
                line = json.loads(text)
                found |= {_kind(line)} if line["step"] > step else set()
    return found


def _kind(line: Mapping[str, Any]) -> tuple[int, bool]:
    """A line is told by its step, and whether it is of a validation."""
    return line["step"], "val_loss" in line

"""The verb `report`: of one run, of one that goes on, of several."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tuninglab.config import ReportConfig
from tuninglab.console import say
from tuninglab.progress import INTERVAL_S as LINES_S
from tuninglab.progress import bars
from tuninglab.reporting.report import look
from tuninglab.reporting.so_far import Standing
from tuninglab.run_folder.lock import writer_of
from tuninglab.training.log import note_of

# Between two looks at a run. Where the page takes long to write, as a long run's does, they are
# rarer: writing takes this share of the time at most.
INTERVAL_S = 2.0
SHARE = 0.1


class Reported(NamedTuple):
    """What came of the verb.

    Attributes:
        page: where it is; "" if none was written.
        figures: for `--json`.
        text: for a terminal, as rich shows it; None: the page is all.
    """

    page: str
    figures: dict[str, Any]
    text: Any = None


def report(config: ReportConfig) -> Reported:
    """Write the report of a run anew, follow one that goes on, or compare several.

    Raises:
        UserError: there is no such run, or a file in it is damaged.
        WorkError: the page cannot be written.
        KeyboardInterrupt: stopped by Ctrl-C; the run goes on.
    """
    if config.others:
        from tuninglab.reporting.several_page import compare

        return Reported(*compare([config.run, *config.others], config.out))
    if config.watch:
        return watch(Path(config.run))
    page, figures, stands = look(config.run)
    if stands.state != "ended":
        say(f"{config.run}: {stands}")
    # Figures come after the page, so that a broken folder prints nothing on standard output.
    return Reported(str(page), figures)


def watch(run_dir: Path) -> Reported:
    """Write the page whenever the run has logged more, until it ends; its progress is shown.

    Raises:
        UserError: there is no such run, or a file in it is damaged.
        KeyboardInterrupt: stopped by Ctrl-C.
    """
    page, figures, stands = look(run_dir)
    if stands.goes_on:
        say(f"{page} loads itself again while the run goes on. Ctrl-C ends the watching alone.")
        page, figures, stands = _followed(run_dir, stands)
    say(f"{run_dir}: {stands}")
    return Reported(str(page), figures)


def _followed(run_dir: Path, stands: Standing) -> tuple[Path, dict[str, Any], Standing]:
    """Look at a run until it no longer goes on; returns the last look."""
    with bars() as bar:
        task = bar.add_task("", total=stands.total, note="") if bar else None
        while True:
            begun, seen = time.monotonic(), _stamp(run_dir)
            page, figures, stands = look(run_dir)
            if not stands.goes_on:
                return page, figures, stands
            if not bar:
                say(_line(figures, stands))
            elif task is not None:
                bar.update(task, total=stands.total, completed=stands.step, note=_note(figures))
            wait_s = LINES_S if bar is None else INTERVAL_S
            time.sleep(max(wait_s, (time.monotonic() - begun) / SHARE))
            while _stamp(run_dir) == seen:
                time.sleep(INTERVAL_S)


def _stamp(run_dir: Path) -> tuple[Any, ...]:
    """What changes when a run has logged more, or has ended."""
    found: list[Any] = [writer_of(run_dir)]
    for name in ("metrics.jsonl", "report.json"):
        with suppress(OSError):
            status = os.stat(run_dir / name)
            found.append((name, status.st_size, status.st_mtime_ns))
    return tuple(found)


def _note(figures: dict[str, Any]) -> str:
    train = figures["train"]
    return note_of({"loss": train["last_loss"], **train}) if "last_loss" in train else ""


def _line(figures: dict[str, Any], stands: Standing) -> str:
    return f"{stands} {_note(figures)}".rstrip()

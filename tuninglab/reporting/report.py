"""The report of a run: loss.png and report.html, written from the files of its folder alone."""

import os
from pathlib import Path
from typing import Any

from tuninglab.disk import own_file
from tuninglab.errors import UserError
from tuninglab.reporting.loss_picture import draw_curves
from tuninglab.reporting.page import page
from tuninglab.reporting.run_evaluations import evaluations_of
from tuninglab.reporting.run_files import (
    read_final,
    read_metrics,
    read_rows,
    read_settings,
)
from tuninglab.reporting.so_far import Standing, figures_so_far, standing
from tuninglab.run_folder import read_starts
from tuninglab.run_folder.lock import writer_of


def write_report(run_dir: str | Path) -> Path:
    """Write `loss.png` and `report.html` of a run folder; returns the page's path.

    The page is one self-contained file: pictures and curves are inside it. The same folder gives
    the same page, byte for byte. Of a run that has not ended it shows what there is so far.

    Raises:
        UserError: the folder is no run folder, or a file in it is broken.
        WorkError: the files cannot be written.
    """
    return look(run_dir)[0]


def look(run_dir: str | Path) -> tuple[Path, dict[str, Any], Standing]:
    """As `write_report`; returns the figures and where the run stands, too.

    Raises:
        UserError: as there.
        WorkError: as there.
    """
    run_dir = Path(run_dir)
    final = read_final(run_dir)
    settings, trainable = read_settings(run_dir), read_rows(run_dir / "trainable.json")
    growing = final is None or writer_of(run_dir) in ("runs", "unseen")
    metrics = read_metrics(run_dir, growing)
    stands = standing(run_dir, final, metrics, settings)
    figures = final if stands.state == "ended" and final is not None else None
    if figures is None:
        figures = figures_so_far(run_dir, stands, metrics, settings, trainable)
    # Asked before drawing: a run folder on a read-only share can be read, not reported into.
    if not os.access(run_dir, os.W_OK):
        raise UserError(f"{run_dir} cannot be written. Change its permissions, or copy it.")
    # While it runs the page alone is looked at.
    if not stands.goes_on:
        draw_curves(metrics, run_dir / "loss.png")
    path = run_dir / "report.html"
    content = page(
        run_dir,
        figures,
        metrics,
        stands,
        settings=settings,
        starts=read_starts(run_dir),
        cards=read_rows(run_dir / "answers.json"),
        trainable=trainable,
        evaluations=evaluations_of(run_dir),
    )
    # The run itself may be writing its last page now.
    with own_file(path) as beside:
        beside.write_text(content, encoding="utf-8")
    return path, figures, stands

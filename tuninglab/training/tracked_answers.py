"""Answers as trackers show them: a table of texts, and the pictures that were asked about."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLUMNS = ("question", "truth", "before", "after")
ANSWERS = "answers"
SIDE_PX = 192


def show(tracker: Any, run_dir: Path, cards: Sequence[Mapping[str, Any]], step: int) -> None:
    """Show answers in a tracker, as far as it can: TensorBoard, W&B and MLflow do.

    Args:
        tracker: one of accelerate's, which has begun.
        run_dir: the run folder, with the pictures.
        cards: what answers.json holds.
        step: after which they were answered.
    """
    rows = [[str(card.get(column, "")) for column in COLUMNS] for card in cards]
    if tracker.name == "tensorboard":
        tracker.log({ANSWERS: _markdown(rows)}, step=step)
        if (found := pictures(run_dir, cards)) is not None:
            tracker.log_images({ANSWERS: found}, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        tracker.log_table(ANSWERS, columns=list(COLUMNS), data=rows, step=step)
        if (found := pictures(run_dir, cards)) is not None:
            tracker.log_images({"pictures": list(found)}, step=step)
    elif tracker.name == "mlflow":
        tracker.log_artifact(str(run_dir / "answers.json"), ANSWERS)
        if (run_dir / "pictures").is_dir():
            tracker.log_artifacts(str(run_dir / "pictures"), f"{ANSWERS}/pictures")


def pictures(run_dir: Path, cards: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """The pictures of cards (N, SIDE_PX, SIDE_PX, 3), white around; None where there are none."""
    if not any("picture" in card for card in cards):
        return None
    # One that cannot be read leaves its place empty: the others stay beside their questions.
    found = np.full((len(cards), SIDE_PX, SIDE_PX, 3), 255, np.uint8)
    for place, card in enumerate(cards):
        with suppress(OSError, KeyError), Image.open(run_dir / card["picture"]) as picture:
            small = picture.convert("RGB")
            small.thumbnail((SIDE_PX, SIDE_PX))
            found[place, : small.height, : small.width] = np.asarray(small)
    return found


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table as TensorBoard reads it."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)

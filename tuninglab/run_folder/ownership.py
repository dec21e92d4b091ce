"""Whose a run folder is: what this program wrote into it, told from all else that lies there."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from tuninglab.disk import remove_folder
from tuninglab.errors import UserError

# Made before anything else in the folder: that it is there says that the folder is a run's.
MARKER = ".tuninglab"
SAID = "A run of tuninglab. --overwrite deletes what runs write, of base/ the files named here.\n"
FILES = (
    *("config.yaml", "environment.json", "trainable.json", "metrics.jsonl", "fingerprints.json"),
    *("answers.json", "report.json", "report.html", "loss.png", "trackers.json"),
)
FOLDERS = ("adapter", "checkpoints", "base", "pictures", "evaluation", "tensorboard")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "tuninglab.json")
CHECKPOINT = ("state.pt", "trainable.safetensors", "manifest.json")
# Of a folder in evaluation/.
ANSWERS = ("asked.json", "predictions.jsonl", "predictions.rank-*.jsonl")
EVALUATION = (*ANSWERS, "report.json", "report.html", MARKER, ".lock")
# What runs write into these folders; of base/ the marker says it.
INSIDE = (
    "pictures/[0-9][0-9][0-9].png",
    "tensorboard/events.out.tfevents.*",
    *(f"adapter/{name}" for name in ADAPTER),
    *(f"checkpoints/step-*/{name}" for name in CHECKPOINT),
    *(f"checkpoints/step-*/adapter/{name}" for name in ADAPTER),
    *(f"evaluation/*/{name}" for name in EVALUATION),
    *(f"evaluation/*/against/{name}" for name in ANSWERS),
)
# What a killed process leaves beside a file or folder that it was writing (disk.py).
LEFT_OVER = re.compile(r"\..+\.(writing|old)")
# The first of the settings that runs keep, in those of before there was a marker.
BEGINNINGS = (b"recipe: finetune\n", b"recipe: flan-t5\n")
SHOWN = 5


def mark(folder: Path) -> None:
    """Say that a folder is a run's.

    Raises:
        OSError: the place cannot be written to.
    """
    with suppress(FileExistsError), open(folder / MARKER, "x", encoding="utf-8") as file:
        file.write(SAID)


def note_base(folder: Path, base: Path) -> None:
    """Keep in the marker which files a base has, before it takes its place in the run folder.

    Raises:
        OSError: the disk is full.
    """
    names = sorted(path.relative_to(base).as_posix() for path in _files(base))
    with open(folder / MARKER, "a", encoding="utf-8") as file:
        file.write("".join(f"base/{name}\n" for name in names))


def is_ours(folder: Path) -> bool:
    """Whether this program made a folder: it is marked, or a run of before there were marks."""
    if folder.is_symlink():
        return False
    if (folder / MARKER).is_file():
        return True
    for config in (folder / "config.yaml", folder / ".config.yaml.writing"):
        if config.is_file() and not config.is_symlink():
            with open(config, "rb") as file:
                begin = file.read(len(BEGINNINGS[0]))
            # A process that was killed may have written less.
            if any(begin.startswith(known) or known.startswith(begin) for known in BEGINNINGS):
                return True
    return False


def check_nothing_foreign(folder: Path) -> None:
    """Pass if what `clear` would delete was written by runs.

    Raises:
        UserError: naming what was not.
    """
    marker = folder / MARKER
    lines = marker.read_bytes().splitlines() if marker.is_file() else []
    base = {os.fsdecode(line) for line in lines if line.startswith(b"base/")}
    foreign = []
    for name in FOLDERS:
        for path in _files(folder / name):
            place = path.relative_to(folder).as_posix()
            if place not in base and not _is_written(place):
                foreign.append(place)
    if foreign:
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        raise UserError(
            f"--overwrite: {folder} holds what no run wrote: {', '.join(foreign[:SHOWN])}{more}. "
            "Nothing was deleted. Move that elsewhere, or choose another --run_name."
        )


def clear(folder: Path) -> None:
    """Delete what runs wrote into a folder, the marker last: killed before, it is still ours.

    Raises:
        OSError: something cannot be deleted.
    """
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
        (folder / f".{name}.writing").unlink(missing_ok=True)
    for name in FOLDERS:
        remove_folder(folder / name)
    # With it goes what it said of the base.
    (folder / MARKER).write_text(SAID, encoding="utf-8")


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder; a link is one, whatever it points to."""
    if folder.is_symlink() or folder.is_file():
        yield folder
    for root, folders, files in os.walk(folder) if not folder.is_symlink() else ():
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        yield from (Path(root, name) for name in sorted([*files, *links]))


def _is_written(place: str) -> bool:
    parts = place.split("/")
    if any(LEFT_OVER.fullmatch(part) for part in parts):
        return True
    patterns = (pattern.split("/") for pattern in INSIDE)
    return any(
        len(pattern) == len(parts) and all(map(fnmatch, parts, pattern)) for pattern in patterns
    )

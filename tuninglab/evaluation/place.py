"""Where an evaluation is kept: its folder, what was asked there, and whether it is gone on with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuninglab.console import is_main_process, say
from tuninglab.disk import write_whole
from tuninglab.errors import UserError
from tuninglab.run_folder import lock, ownership
from tuninglab.untrusted import MIB, read_json

ASKED = "asked.json"
FOLDER = "evaluation"
# Inside an evaluation: the answers of what it is compared with.
AGAINST = "against"


@dataclass
class Place:
    """The folder of one evaluation.

    Args:
        folder: it need not be there yet.
        asked: all that the answers depend on, as JSON has it.
        known: whether the folder holds answers to exactly this.
    """

    folder: Path
    asked: dict[str, Any]
    known: bool = False

    @classmethod
    def below(cls, outer: "Place", name: str, asked: dict[str, Any]) -> "Place":
        """A folder inside that of another evaluation, begun; of that one nothing is deleted."""
        folder = outer.folder / name
        path = folder / ASKED
        known = path.is_file() and asked == read_json(path, MIB, "evaluation")
        inner = cls(folder, asked, known)
        if is_main_process():
            folder.mkdir(parents=True, exist_ok=True)
            inner.prepare()
        return inner

    def begin(self) -> None:
        """Make the folder, keep other processes out, and write down what is asked.

        What an evaluation of other questions left there is deleted.

        Raises:
            UserError: another process evaluates there, or the place cannot be written to.
            WorkError: the disk is full.
        """
        if not is_main_process():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            ownership.mark(self.folder)
            lock.take(self.folder)
            self.prepare()
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written to: {error.strerror}. Give --output_dir."
            ) from error

    def prepare(self) -> None:
        """Delete what answers other questions, and write down what is asked now."""
        if not self.known:
            for pattern in (*ownership.ANSWERS, "report.*", f"{AGAINST}/*"):
                for path in self.folder.glob(pattern):
                    path.unlink()
        write_whole(self.folder / ASKED, json.dumps(self.asked, indent=2) + "\n")

    def release(self) -> None:
        """Let other processes write into the folder again."""
        if is_main_process():
            lock.release(self.folder)


def find_place(
    parent: Path, name: str, asked: dict[str, Any], given: bool, overwrite: bool
) -> Place:
    """The folder for an evaluation: one that asks exactly this and is gone on with, or a free one.

    Args:
        parent: holds evaluations.
        name: wanted.
        asked: all that the answers depend on.
        given: whether the user named it; else another number behind it will do.
        overwrite: whether an evaluation of other questions may be deleted there.

    Raises:
        UserError: the name is taken.
    """
    names = [name] if given else [name, *(f"{name}-{number}" for number in range(2, 1000))]
    for one in names:
        folder = parent / one
        if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
            return Place(folder, asked)
        if (folder / ASKED).is_file() and asked == read_json(folder / ASKED, MIB, "evaluation"):
            say(f"{folder}: what was answered there is taken over.")
            return Place(folder, asked, known=True)
        if overwrite and ownership.is_ours(folder) and (folder / ASKED).is_file():
            return Place(folder, asked)
    folder = parent / names[0]
    if not (folder / ASKED).is_file():
        raise UserError(f"{folder} is there and holds no evaluation. Give another --name.")
    raise UserError(
        f"{folder} holds an evaluation of something else. Give another --name, or --overwrite."
    )

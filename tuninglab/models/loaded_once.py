"""A model that one process of a machine makes, and the others of it map: one copy in memory.

A base in the format of its files needs none of this: each process maps these, and what it does not
touch takes no memory. But one that is rounded or quantised as it is read would be made by each.
"""

import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object

from tuninglab.console import say
from tuninglab.disk import is_running, whole_file
from tuninglab.errors import WorkError
from tuninglab.int8.quantiser import return_freed_memory

Made = TypeVar("Made")

# Rank and local rank of this process, while the processes load together.
_ranks: tuple[int, int] | None = None


@contextmanager
def loaded_once(rank: int, local_rank: int) -> Iterator[None]:
    """Within the block the first process of each machine loads models for the others of it.

    All processes must load the same, in the same order.

    Args:
        rank: of this process; those of a machine follow one another.
        local_rank: on its machine.
    """
    global _ranks
    _ranks = (rank, local_rank)
    try:
        yield
    finally:
        _ranks = None


def once(read: Callable[[], Made], weights: Callable[[Made], torch.nn.Module]) -> Made:
    """What `read` makes, made once a machine within `loaded_once`; else here.

    Args:
        read: makes it.
        weights: the model in it.
    """
    if _ranks is None:
        return read()
    rank, local_rank = _ranks
    made, folder = None, None
    if local_rank == 0:
        made = read()
        # With what is drawn next: the others have drawn nothing yet.
        folder = _written((made, torch.get_rng_state()), weights(made))
    # Those of this machine wait here for its first.
    folder = gather_object([folder])[rank - local_rank]
    if folder is None:
        return read() if made is None else made
    try:
        made = None
        return_freed_memory()
        # The first process's own file, in a folder of this user's alone. Private pages: what one
        # process writes into a weight the others do not see.
        made, drawing = torch.load(Path(folder) / "model.pt", mmap=True, weights_only=False)
        torch.set_rng_state(drawing)
        return made
    finally:
        gather_object([None])
        if local_rank == 0:
            # The pages stay for those who have mapped them.
            shutil.rmtree(folder)


def _written(made: Any, model: torch.nn.Module) -> str | None:
    """The folder that a model was written to; None where the disk lacks room."""
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    _remove_left()
    folder = tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-")
    try:
        enough = shutil.disk_usage(folder).free >= 1.1 * size
        if enough:
            with whole_file(Path(folder) / "model.pt") as path:
                torch.save(made, path)
    # Others write there, too; or there is a quota.
    except WorkError:
        enough = False
    except BaseException:
        shutil.rmtree(folder)
        raise
    if not enough:
        shutil.rmtree(folder)
        say(
            f"{tempfile.gettempdir()} lacks {size / 2**30:.1f} GiB for one copy of the base: each "
            "process makes its own. TMPDIR names another folder."
        )
        return None
    return folder


def _prefix() -> str:
    # Of this host alone are the numbers of processes known: the folder may be shared.
    return f"tuninglab-base-{socket.gethostname()}-"


def _remove_left() -> None:
    """Delete the folders of processes that were killed: each holds a model."""
    for left in Path(tempfile.gettempdir()).glob(f"{glob.escape(_prefix())}*"):
        pid = left.name.removeprefix(_prefix()).partition("-")[0]
        # In a container, numbers come again: this process has none of its own yet.
        if pid.isdecimal() and (int(pid) == os.getpid() or not is_running(int(pid))):
            # Not those of other users.
            shutil.rmtree(left, ignore_errors=True)

"""Data that was read and checked once is kept in the cache folder, for as long as it stays so."""

import atexit
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from tuninglab.console import say
from tuninglab.data.reading.building import Built
from tuninglab.data.reading.checking import Looked, changed
from tuninglab.data.reading.folders import PICTURE_ENDINGS, ending
from tuninglab.data.reading.store import SAMPLES, Table
from tuninglab.disk import whole_folder
from tuninglab.errors import WorkError
from tuninglab.kernels.cache import cache_folder
from tuninglab.progress import working

# One higher where samples come to be made otherwise of the same files.
FORM = 3
# Another place for what was read, e.g. on a disk with more room.
PLACE = "TUNINGLAB_DATA_CACHE"
ABOUT, TABLE, PICTURES, NAMES = "about.json", "table.npz", "pictures.npz", "pictures.json"


@dataclass
class Entry:
    """What was kept of a set: where, what was found, and of which pictures.

    Args:
        folder: holds the samples.
        about: what is told of the set, as JSON.
        table: places of the samples.
        moved: names of pictures whose links lead elsewhere below the root, and where to.
    """

    folder: Path
    about: dict[str, Any]
    table: Table
    moved: dict[str, str]


def entry_folder(identity: Mapping[str, Any]) -> Path:
    """The folder of a set, by all that decides which samples come of its files."""
    text = json.dumps({"form": FORM, **identity}, sort_keys=True)
    return kept_folder() / hashlib.sha256(text.encode()).hexdigest()[:24]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within, no other process writes this entry: ranks of one run read the same data at once."""
    # Nothing is written into it, and nothing that may be there is emptied.
    with open(folder.with_name(f"{folder.name}.lock"), "ab") as lock:
        with suppress(OSError):  # some file systems have no locks: then each may write the same
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with working("waiting for another process that reads this data"):
                    fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load_entry(folder: Path, files: Iterable[Path]) -> Entry | None:
    """What was kept, if data and pictures are as they were; else None.

    Args:
        folder: of the entry.
        files: that lie now where the data is; further ones may belong to them.
    """
    entry = read_entry(folder)
    # A picture that was nowhere may by now be in any of the places where it is looked for.
    if entry is None or entry.about["unfound"]:
        return None
    # Shards may have come to a folder.
    if not {os.path.abspath(file) for file in files} <= entry.about["files"].keys():
        return None
    for name, stamp in entry.about["files"].items():
        if _stamp(Path(name)) != stamp:
            return None
    names, looked = _pictures(folder)
    sizes = array("q", [look.size for look in looked])
    times = array("q", [look.mtime_ns for look in looked])
    return None if changed(names, Path(entry.about["root"]), sizes, times) else entry


def known_pictures(folder: Path) -> dict[str, Looked]:
    """What an earlier look found of picture files, by name; nothing if nothing was kept."""
    with suppress(OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        names, looked = _pictures(folder)
        return {name: look for name, look in zip(names, looked, strict=True) if name}
    return {}


@contextmanager
def new_entry(folder: Path) -> Iterator[Path]:
    """A folder to write an entry into; it takes its place at the end.

    Raises:
        WorkError: the disk is full.
    """
    try:
        with whole_folder(folder) as beside:
            yield beside
    except WorkError as error:
        raise WorkError(f"{error} For what is read of data, {PLACE} names a folder.") from error


def stamps(files: Iterable[Path]) -> dict[str, list[int] | None]:
    """Size and time of change of files, to be taken before they are read."""
    return {os.path.abspath(file): _stamp(file) for file in files}


def keep(beside: Path, built: Built, what: str, root: Path, files: Mapping[str, Any]) -> None:
    """Write what is to be known of a set beside its samples; `files` are the `stamps`."""
    about = {
        "what": what,
        "root": os.fspath(root),
        "files": files,
        "records": built.records,
        "bad": built.bad,
        "problems": built.problems,
        "notes": dict(built.notes),
        "formats": dict(built.formats),
        "digest": built.digest,
        "window": built.window,
        "unfound": built.unfound,
        "bytes": (beside / SAMPLES).stat().st_size,
    }
    (beside / ABOUT).write_text(json.dumps(about))
    np.savez(beside / TABLE, **asdict(built.table))
    looked = built.pictures
    named = [[name, look.place] for name, look in zip(built.names, looked, strict=True)]
    (beside / NAMES).write_text(json.dumps(named))
    np.savez(
        beside / PICTURES,
        sizes=np.array([look.size for look in looked], np.int64),
        times=np.array([look.mtime_ns for look in looked], np.int64),
        digests=np.array([look.digest or bytes(32) for look in looked], "V32"),
        heads=np.array([look.head or bytes(32) for look in looked], "V32"),
        whole=np.array([look.whole for look in looked], bool),
        bad=np.array([bool(look.problem) for look in looked], bool),
    )


def read_entry(folder: Path) -> Entry | None:
    """What was kept, whatever became of the data since; None if it is not whole."""
    try:
        about = json.loads((folder / ABOUT).read_text())
        if (folder / SAMPLES).stat().st_size != about["bytes"]:
            return None
        with np.load(folder / TABLE) as arrays:
            table = Table(**{name: arrays[name] for name in arrays.files})
        names, looked = _pictures(folder)
    # What a full disk or a killed system left: it is read anew.
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return None
    places = zip(names, looked, strict=True)
    return Entry(folder, about, table, {n: look.place for n, look in places if look.place})


def _pictures(folder: Path) -> tuple[list[str], list[Looked]]:
    named = json.loads((folder / NAMES).read_text())
    with np.load(folder / PICTURES) as arrays:
        kept = ("sizes", "times", "digests", "heads", "whole", "bad")
        columns = (arrays[name].tolist() for name in kept)
        looked = [
            Looked(size, time, bytes(digest), whole, place, "bad" if bad else "", bytes(head))
            for size, time, digest, head, whole, bad, (_, place) in zip(
                *columns, named, strict=True
            )
        ]
    return [name for name, _ in named], looked


def looked_pictures(folder: Path) -> tuple[list[str], list[Looked]]:
    """Names ("" of what is no file of its own) and what was found, of all pictures of an entry."""
    return _pictures(folder)


def _stamp(file: Path) -> list[int] | None:
    """Size and time of change of a file; of a folder, how much is in it and a digest of that."""
    try:
        found = file.stat()
        if not stat.S_ISDIR(found.st_mode):
            return [found.st_size, found.st_mtime_ns]
        count = total = 0
        for name, *stamp in _inside(file):
            count += 1
            # Added up, so that their order does not matter.
            said = blake2b(os.fsencode(f"{name} {stamp}"), digest_size=6).digest()
            total += int.from_bytes(said)
        return [count, total]
    except OSError:
        return None


def _inside(folder: Path) -> Iterator[tuple[Any, ...]]:
    """The files in a folder and its folders: path, size and time; of pictures the path alone."""
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for one in found:
                if one.is_dir(follow_symlinks=False):
                    waiting.append(one.path)
                elif ending(one.name) in PICTURE_ENDINGS:
                    # They have stamps of their own, where they are used.
                    yield (one.path,)
                else:
                    about = one.stat()
                    yield one.path, about.st_size, about.st_mtime_ns


@cache
def kept_folder() -> Path:
    """The folder of all entries; one that is gone at the end where none can be kept."""
    if named := os.environ.get(PLACE):
        folder, why = Path(named).absolute(), ""
    else:
        home, why = cache_folder()
        folder = (home or Path()) / "data"
    if not why:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = os.stat(folder)
            if found.st_uid != os.geteuid() or not os.access(folder, os.W_OK):
                why = f"{folder} is another user's, or cannot be written"
            # What others put there would be learned, and could be pictures from anywhere.
            elif found.st_mode & stat.S_IWOTH:
                why = f"{folder} can be written by everybody"
            else:
                return folder
        except OSError as error:
            why = f"{folder} cannot be used: {error.strerror}"
    own = tempfile.mkdtemp(prefix="tuninglab-data-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    say(f"What is read of the data is not kept for the next start: {why}. {PLACE} names a folder.")
    return Path(own)

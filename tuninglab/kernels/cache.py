"""Where compiled kernels are kept: they are run, so in a folder and files of ours alone."""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Of folders that hold a library while it is built.
PREFIX = "tuninglab-kernels-"
# Between a new folder and the lock on it much less passes.
LOCKED_WITHIN_S = 1.0


def cache_folder() -> tuple[Path | None, str]:
    """The folder that built kernels are kept in, or None and why there is none.

    As the XDG base directory specification has it, folders that are not there yet are made for
    their owner only.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(home).absolute() / "tuninglab"
    try:
        for place in (*reversed(folder.parents), folder):
            place.mkdir(mode=0o700, exist_ok=True)
        above = folder.parent.stat()
        # There, somebody else could exchange the folder after it was looked at.
        if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
            return None, f"{folder.parent} can be written by everybody"
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if found.st_uid != os.geteuid():
                return None, f"{folder} is another user's"
            # Earlier versions left it to the umask. What is in it is looked at by itself.
            os.fchmod(descriptor, found.st_mode & 0o700)
        finally:
            os.close(descriptor)
    except OSError as error:
        return None, f"{folder} cannot be used: {error.strerror}"
    writable = os.access(folder, os.W_OK)
    return (folder, "") if writable else (None, f"{folder} cannot be written")


def find_library(folder: Path, key: str) -> Path | None:
    """The library that was kept under a key, whole and written by ourselves; others are deleted.

    Raises:
        OSError: the folder cannot be read.
    """
    for path in sorted(folder.glob(f"kernels-{key}-*.so")):
        found = path.lstat()
        ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        if ours and not found.st_mode & 0o077 and path.name == _name(key, path):
            return path
        with suppress(OSError):
            path.unlink()
    return None


def keep_library(built: Path, folder: Path, key: str) -> Path:
    """Move a library that was built in a folder below `folder` into it, under its key and content.

    Loading one that was cut off ends the process: with its content's hash in the name, it is found
    out before.

    Raises:
        OSError: the folder cannot be written.
    """
    built.chmod(0o700)
    target = folder / _name(key, built)
    # Renamed when whole: processes of torchrun build at the same time.
    return built.replace(target)


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """A new folder below `folder`, for this process alone, removed at the end.

    What killed processes left there goes too: a living one holds a lock on its own.

    Raises:
        OSError: `folder` cannot be written.
    """
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            _remove_if_left(path)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder, ignore_cleanup_errors=True) as own:
        descriptor = os.open(own, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Some file systems have no locks: there, what is left over stays.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(own)
        finally:
            os.close(descriptor)


def _remove_if_left(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid == os.geteuid() and time.time() - found.st_mtime > LOCKED_WITHIN_S:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)


def _name(key: str, path: Path) -> str:
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return f"kernels-{key}-{content[:16]}.so"

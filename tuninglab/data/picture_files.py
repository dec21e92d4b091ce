"""Picture files: named under a root, and opened so that nothing else is read in their place."""

import os
import re
import stat
from io import BufferedReader
from pathlib import Path

from tuninglab.data.sample import brief, reason
from tuninglab.errors import UserError
from tuninglab.untrusted import OPENING

MIB = 2**20
# MAX_PIXELS of images.py with 16 bits in each of three channels, not compressed.
MAX_BYTES = 512 * MIB
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+://|data:)")
# Folders are only gone through, which those may be that cannot be listed; macOS has no such flag.
THROUGH = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)


class ConfinedPath(type(Path())):
    """A path that was found to lie under the image root, without a link in it.

    Whoever opens it (`open_picture`) relies on that: a link that takes the place of the file or of
    a folder afterwards is not followed. As text it is a path as any other.
    """


def confined_path(name: str, root: Path) -> ConfinedPath:
    """The resolved path of a picture named in a data file, which must lie under `root`.

    Args:
        name: the path relative to the root, or an absolute one of what lies below it.
        root: an absolute folder with its symlinks resolved.

    Raises:
        UserError: the name is a URL, of a folder, or leaves the root (by `..` or a symlink, or
            because it is absolute).
    """
    # Never fetched: a data file must not make this machine open connections.
    if _SCHEME.match(name):
        raise UserError(f"picture {brief(name, 200)} is a URL; download it first and give its path")
    # Path drops such an end, and a file would be found where the system finds none.
    if name.rpartition("/")[2] in ("", ".", ".."):
        raise UserError(
            f"picture {brief(name, 200)} is no regular file but names a folder; correct its end"
        )
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL in the name
        raise UserError(
            f"picture {brief(name, 200)} has no usable path: {reason(error)}; correct it"
        ) from None
    # `..` inside the root is fine: what counts is where the path ends, after all links.
    if not path.is_relative_to(root):
        raise UserError(
            f"picture {brief(name, 200)} leads out of the image root {root}; copy it there "
            "or name a root that holds it (--image_root)"
        )
    return ConfinedPath(path)


def open_picture(path: str | os.PathLike[str]) -> BufferedReader:
    """A picture file, opened to read; what is checked is what was opened, not the name before.

    Args:
        path: a `ConfinedPath`, of which no part may be a link by now; or any other, trusted.

    Raises:
        UserError: missing, no regular file, too large, or cannot be opened; it names the file.
    """
    label = f"picture {brief(os.fspath(path), 200)}"
    try:
        confined = isinstance(path, ConfinedPath)
        descriptor = _open_without_links(path) if confined else os.open(path, OPENING)
        found = os.fstat(descriptor)
    except FileNotFoundError:
        raise UserError(f"{label} does not exist; check its name and --image_root") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{label} cannot be read: {reason(error)}; check its name and permissions"
        ) from error
    problem = None
    if not stat.S_ISREG(found.st_mode):  # also a pipe, which would be waited for without end
        problem = "no regular file; expected a picture"
    elif found.st_size > MAX_BYTES:
        problem = f"too large: files of at most {MAX_BYTES // MIB} MiB are read; make it smaller"
    if problem:
        os.close(descriptor)
        raise UserError(f"{label} is {problem}")
    return os.fdopen(descriptor, "rb")


def _open_without_links(path: ConfinedPath) -> int:
    """The descriptor of a file, from the root of the file system down, each step in the last one.

    Raises:
        OSError: a part is a link, or any other reason of the system.
    """
    *folders, name = path.parts[1:]
    folder = os.open(path.anchor, THROUGH)
    try:
        for part in folders:
            inner = os.open(part, THROUGH, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(name, OPENING | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)

"""Pictures looked at before the start: whole or by their headers, each once, in threads."""

import hashlib
import os
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from tuninglab.data.images import check_picture
from tuninglab.data.picture_files import confined_path, open_picture
from tuninglab.data.sample import StoredPicture, brief
from tuninglab.errors import UserError

# Of pictures whose headers alone are read: enough to tell files apart that cameras named alike.
HEAD_BYTES = 4096
# Checked ahead of their results being taken: more would only fill memory.
AHEAD = 256


class Looked(NamedTuple):
    """What was found of a picture.

    Args:
        size: of its file in bytes.
        mtime_ns: when the file was changed; 0 in a larger file.
        digest: sha256 of the file; where only its header was read, of its size and first bytes.
        whole: whether it was decoded.
        place: where the file lies below the root, if a link on its way makes it another than its
            name says; else "".
        problem: what is wrong with it; "" if nothing is.
        head: sha256 of the file's size and first bytes, which there is of every picture.
    """

    size: int
    mtime_ns: int
    digest: bytes
    whole: bool
    place: str = ""
    problem: str = ""
    head: bytes = b""


class Checker:
    """Looks at pictures in threads while the records are still read.

    Args:
        root: the folder that names of pictures start from, links resolved.
        whole: how many are decoded; of those after, the header is read.
        known: what an earlier look found, by name; it holds for a file of the same size and time.
    """

    def __init__(self, root: Path, whole: float, known: Mapping[str, Looked]):
        self.root, self.whole, self.known = root, whole, known
        self.found: list[Looked] = []
        self._waiting: deque[Future[Looked]] = deque()
        # Pillow decodes and hashlib hashes outside the interpreter lock.
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count())

    def add(self, picture: str | StoredPicture) -> int:
        """Have a picture looked at; returns its number, counted from 0."""
        number = len(self.found) + len(self._waiting)
        self._waiting.append(self._pool.submit(self._look, picture, number < self.whole))
        while len(self._waiting) > AHEAD:
            self.found.append(self._waiting.popleft().result())
        return number

    def finish(self) -> Iterator[int]:
        """Wait for all that were added; yields how many are done."""
        while self._waiting:
            self.found.append(self._waiting.popleft().result())
            yield len(self.found)

    def close(self) -> None:
        """Drop what is not begun; without this Ctrl-C would wait for all that are queued."""
        self._pool.shutdown(cancel_futures=True)

    def _look(self, picture: str | StoredPicture, whole: bool) -> Looked:
        try:
            if isinstance(picture, StoredPicture):
                data = picture.read()
                check_picture(BytesIO(data), f"picture {brief(picture.name, 200)}", whole)
                head = head_digest(len(data), data[:HEAD_BYTES])
                return Looked(len(data), 0, hashlib.sha256(data).digest(), whole, head=head)
            return self._look_at_file(picture, whole)
        except UserError as error:
            # With its stamp: what is wrong with it holds for as long as the file stays as it is.
            stamp = stamp_of(picture, self.root) if isinstance(picture, str) else (0, 0)
            return Looked(*stamp, b"", whole, problem=str(error))

    def _look_at_file(self, name: str, whole: bool) -> Looked:
        path = confined_path(name, self.root)
        place = "" if path == self.root / name else str(path.relative_to(self.root))
        with open_picture(path) as file:
            stat = os.fstat(file.fileno())
            known = self.known.get(name)
            stamp = (stat.st_size, stat.st_mtime_ns)
            # Decoded once is more than a header read now.
            if known and known[:2] == stamp and known.whole >= whole and not known.problem:
                return known._replace(place=place)
            check_picture(file, f"picture {brief(os.fspath(path), 200)}", whole)
            file.seek(0)
            digest = head = head_digest(stat.st_size, file.read(HEAD_BYTES))
            if whole:
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").digest()
        return Looked(stat.st_size, stat.st_mtime_ns, digest, whole, place, head=head)


@contextmanager
def checker(root: Path, whole: float, known: Mapping[str, Looked]) -> Iterator[Checker]:
    """A `Checker` that ends with the block."""
    own = Checker(root, whole, known)
    try:
        yield own
    finally:
        own.close()


def head_digest(size: int, beginning: bytes) -> bytes:
    """A sha256 of the size of a file and its first HEAD_BYTES."""
    return hashlib.sha256(b"%d " % size + beginning).digest()


def changed(names: list[str], root: Path, sizes: array, times: array) -> bool:
    """Whether a file of a picture is gone, or of another size or time than it was."""
    for name, size, time in zip(names, sizes, times, strict=True):
        if name and stamp_of(name, root) != (size, time):
            return True
    return False


def stamp_of(name: str, root: Path) -> tuple[int, int]:
    """Size and time of change (ns) of a file below the root; (-1, 0) where there is none."""
    try:
        stat = os.stat(root / name)
    except (OSError, ValueError):  # gone; or a name that the system refuses
        return -1, 0
    return stat.st_size, stat.st_mtime_ns

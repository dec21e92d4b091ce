"""Features of pictures, computed once and kept on disk: what frozen parts of a model make of them.

A cache is a folder of four files. `cache.json` says what made the features. `features.bin` holds
them as they were computed, a row a picture. `index.bin` holds for each row the sha256 of its
picture and the row's own CRC-32, written once the row is on the disk: a row whose place in the
index is all zeros, or lies beyond the end of either file, is not there. So a process may be killed
at any moment, and a row that a disk gave back otherwise is noticed when it is read.
`files.json` remembers which file had which sha256, so that no picture is hashed twice.
"""

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuninglab.data.looking import content_digest, is_file
from tuninglab.data.sample import ImageSource
from tuninglab.disk import write_whole
from tuninglab.errors import UserError, WorkError
from tuninglab.progress import working

# Of the index: what a row is of, and what it was when it was written.
PLACE = np.dtype([("digest", "V32"), ("sum", "<u4")])
# What a process that was killed while it began a cache may leave in the folder.
BEGUN = {".cache.json.writing"}
MIB = 2**20


@dataclass
class FeatureCache:
    """The features of pictures in a folder, from `open_cache`.

    Args:
        folder: holds the four files.
        name: of the features, as the model's forward calls them.
        shape: of the features of one picture, e.g. (L, D).
        dtype: of the numbers, exactly as they were computed.
        rows: sha256 of a picture -> number of its row.
        files: picture file -> its sha256, as it was when the run began.
        sums: number of a row -> its CRC-32.
    """

    folder: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: dict[bytes, int] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    sums: dict[int, int] = field(default_factory=dict)

    @property
    def row_bytes(self) -> int:
        """Bytes of the features of one picture."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def refresh(self) -> None:
        """Read anew which pictures there are.

        Raises:
            UserError: the files cannot be read.
        """
        places = self._index()
        done = np.flatnonzero(_taken(places)).tolist()
        self.rows = {places["digest"][number].tobytes(): number for number in done}
        self.sums = {number: int(places["sum"][number]) for number in done}

    def free_rows(self, count: int) -> list[int]:
        """The numbers of so many rows that hold nothing: those left half written come first."""
        places = self._index()
        holes = np.flatnonzero(~_taken(places)).tolist()
        return [*holes, *range(len(places), len(places) + count)][:count]

    def _index(self) -> np.ndarray:
        """The places (N,) of the rows that lie within both files."""
        index, features = self.folder / "index.bin", self.folder / "features.bin"
        if not (index.exists() and features.exists()):
            return np.zeros(0, PLACE)
        try:
            rows = index.stat().st_size // PLACE.itemsize
            return np.fromfile(index, PLACE, min(rows, features.stat().st_size // self.row_bytes))
        except OSError as error:
            raise UserError(_unreadable(self.folder, index, error)) from error

    def write(self, numbers: Sequence[int], digests: Sequence[bytes], features: Tensor) -> None:
        """Write the rows of N pictures: features (N, *shape); then, that they are there.

        Raises:
            WorkError: the disk is full or cannot be written.
        """
        # As bytes, because numpy has no bfloat16.
        rows = features.detach().cpu().flatten(1).contiguous().view(torch.uint8).numpy()
        self._put("features.bin", self.row_bytes, numbers, rows)
        places = [
            d + zlib.crc32(row).to_bytes(4, "little") for d, row in zip(digests, rows, strict=True)
        ]
        self._put("index.bin", PLACE.itemsize, numbers, places)

    def _put(self, name: str, size: int, numbers: Sequence[int], rows: Iterable[Any]) -> None:
        path = self.folder / name
        try:
            # Opened so that other processes write other rows of it at the same time.
            with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                for number, row in zip(numbers, rows, strict=True):
                    file.seek(number * size)
                    file.write(row)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise WorkError(
                f"{path} could not be written: {error.strerror}. The features written so far are "
                "whole. Free some space, or name another folder (--cache_features)."
            ) from error

    def read(self, images: Sequence[ImageSource]) -> Tensor:
        """Features (M, *shape) of M pictures; one row of zeros where there is none.

        Raises:
            UserError: a picture is not in the cache, or its row is damaged or cannot be read.
        """
        if not images:
            # As a blank picture: no token sees it.
            return torch.zeros(1, *self.shape, dtype=self.dtype)
        return torch.stack([self._row(image) for image in images])

    def _row(self, image: ImageSource) -> Tensor:
        # By its name a file stays what it was when the run began.
        known = self.files.get(os.fspath(image)) if is_file(image) else None
        return self.row(known or content_digest(image))

    def row(self, digest: bytes) -> Tensor:
        """Features (*shape) of a picture by its sha256.

        Raises:
            UserError: as `read`.
        """
        number = self.rows.get(digest)
        if number is None:
            raise UserError(
                f"a picture has no features in {self.folder}: it is none of the run's data, or "
                "changed while the run went on. Start again."
            )
        # Opened anew each time: worker processes share no position in a file.
        path, offset = self.folder / "features.bin", number * self.row_bytes
        try:
            row = np.fromfile(path, np.uint8, self.row_bytes, offset=offset)
        except OSError as error:
            raise UserError(_unreadable(self.folder, path, error)) from error
        # Each time: it costs a part of the reading, and what was read before may lie elsewhere now.
        if zlib.crc32(row.data) != self.sums[number]:
            raise UserError(
                f"{path}: row {number} (from byte {offset:,}) is not what was written (its "
                f"checksum differs). Delete {self.folder} and start again: all is computed anew."
            )
        return torch.from_numpy(row).view(self.dtype).view(self.shape)

    def stamps(self) -> dict[str, list[Any]]:
        """Picture file -> size, time of its change (ns), sha256: what `files.json` remembers."""
        try:
            found = json.loads((self.folder / "files.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # Absent or damaged, it costs time only.
            return {}
        return found if isinstance(found, dict) else {}

    def remember(self, stamps: Mapping[str, list[Any]]) -> None:
        """Add to what `files.json` remembers; from the main process.

        Raises:
            WorkError: the disk is full.
        """
        write_whole(self.folder / "files.json", json.dumps({**self.stamps(), **stamps}))

    def check_space(self, count: int) -> str:
        """How much the rows of so many pictures take, in words, if the disk has that.

        Raises:
            UserError: the disk has less room.
        """
        needed, free = count * self.row_bytes, shutil.disk_usage(self.folder).free
        size = f"{count:,} pictures x {self.row_bytes / 1024:,.3g} KiB = {needed / MIB:,.3g} MiB"
        if needed > free:
            raise UserError(
                f"--cache_features: {size}, but {self.folder} has room for {free / MIB:,.0f} MiB. "
                "Free some space, or name a folder on another disk."
            )
        return size


def open_cache(
    folder: Path,
    identity: Mapping[str, Any],
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> FeatureCache:
    """The cache in a folder, which is begun if there is nothing.

    Args:
        folder: of the cache, or a new one, or an empty one.
        identity: all that the features depend on beside the picture, as plain JSON.
        name: of the features, as the model's forward calls them.
        shape: of the features of one picture.
        dtype: of the numbers.

    Raises:
        UserError: the folder holds something else, or features of another identity; or it cannot
            be made.
    """
    identity = json.loads(json.dumps(identity))
    said = folder / "cache.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not said.exists():
            if any(entry.name not in BEGUN for entry in folder.iterdir()):
                raise _no_cache(folder, "it holds other files and no cache.json")
            write_whole(said, json.dumps(identity, indent=2))
        found = json.loads(said.read_text(encoding="utf-8"))
    except (OSError, WorkError) as error:
        raise _refused(folder, error) from error
    except ValueError as error:
        raise _no_cache(folder, "its cache.json is damaged") from error
    if not isinstance(found, dict):
        raise _no_cache(folder, "its cache.json is another program's")
    others = [key for key in {**identity, **found} if found.get(key) != identity.get(key)]
    if others:
        values = (_short(found.get(others[0])), _short(identity.get(others[0])))
        raise UserError(
            f"--cache_features {folder}: its features were made otherwise: {', '.join(others)} "
            f"differ ({others[0]} {values[0]} there, {values[1]} here). Name another folder, or "
            "none: each model then has its own."
        )
    return FeatureCache(folder, name, shape, dtype)


def _refused(folder: Path, error: OSError | WorkError) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(
        f"--cache_features {folder} cannot be used: {reason}. Name a folder on a local disk that "
        "you may write to."
    )


def _unreadable(folder: Path, file: Path, error: OSError) -> str:
    return (
        f"{file} cannot be read: {error.strerror or error}. Allow its reading, or delete {folder}: "
        "features are then computed anew."
    )


def _taken(places: np.ndarray) -> np.ndarray:
    """Which places (N,) of the index are not all zeros: (N,)."""
    return places.view(np.uint8).reshape(-1, PLACE.itemsize).max(axis=1) > 0


def _no_cache(folder: Path, why: str) -> UserError:
    return UserError(
        f"--cache_features {folder} is no feature cache: {why}. It is left alone; name another "
        "folder."
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Within the block no other run fills the cache in a folder; its end, by a kill too, ends that.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The folder itself: a file for this would be one more to explain.
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise _refused(folder, error) from error
    try:
        with working(f"waiting for another run that fills {folder}"):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            # Some network file systems have no locks.
            except OSError as error:
                raise _refused(folder, error) from error
        yield
    finally:
        os.close(lock)

"""What lies in a folder of data: files by their ending, without links out of it, and splits."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tuninglab.data.reading.json_files import shown
from tuninglab.data.sample import reason
from tuninglab.errors import UserError
from tuninglab.untrusted import open_regular

PICTURE_ENDINGS = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"}
# A word of its own in a file's or folder's name: `data/train-00000-of-00004.parquet`, `val/0.tar`.
SPLIT_WORD = re.compile(
    r"(?<![a-z])(training|train|validation|valid|val|dev|testing|test)(?![a-z])", re.IGNORECASE
)
MOST_SHOWN = 8


def need_pyarrow(path: Path) -> None:
    """Pass if pyarrow is installed.

    Raises:
        UserError: it is not; with the command that installs it.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UserError(
            f"{shown(path)} needs pyarrow to be read: pip install 'tuninglab[data]'"
        ) from None


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, in the order of names, hidden things left out.

    Raises:
        UserError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            return sorted((one for one in found if one.name[0] != "."), key=lambda one: one.name)
    except OSError as error:
        raise UserError(f"{shown(folder)} cannot be listed: {reason(error)}") from error


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in the order of names.

    Raises:
        UserError: it cannot be listed, or one is a link that leads out of it; others are left out,
            for what they lead to is there twice.
    """
    found = [one for one in entries(folder) if os.path.isdir(one)]
    for one in found:
        inside(Path(one.path), folder)
    return [Path(one.path) for one in found if not one.is_symlink()]


def ending(name: str) -> str:
    """What stands after the last dot of a name, in small letters."""
    return os.path.splitext(name)[1][1:].lower()


def files_ending(folder: Path, *endings: str) -> list[Path]:
    """The files directly in a folder that end so, in the order of names.

    Raises:
        UserError: the folder cannot be listed, or one is a link that leads out of it.
    """
    found = [Path(one.path) for one in entries(folder) if os.path.isfile(one)]
    return [inside(path, folder) for path in found if ending(path.name) in endings]


def inside(path: Path, folder: Path) -> Path:
    """A file of a folder of data, if it is in there after all links.

    Raises:
        UserError: it is a link that leads out of the folder.
    """
    root = folder.resolve()
    # Downloads from the hub are folders of links into their neighbour `blobs`.
    if root.parent.name == "snapshots":
        root = root.parent.parent
    if os.path.islink(path) and not path.resolve().is_relative_to(root):
        raise UserError(f"{shown(path)} is a link out of its folder; copy what it leads to there")
    return path


def files_below(folder: Path, *endings: str) -> dict[str, list[Path]]:
    """By ending, the files in a folder or, where it has none, in its folders, two levels deep.

    Raises:
        UserError: a folder cannot be listed, or a file is a link that leads out.
    """
    level, found = [folder], {}
    for _ in range(3):
        here: dict[str, list[Path]] = defaultdict(list)
        deeper = []
        for one in (one for place in level for one in entries(place)):
            path, kind = Path(one.path), ending(one.name)
            if one.is_dir(follow_symlinks=False):
                deeper.append(path)
            elif kind in endings and os.path.isfile(one):
                here[kind].append(inside(path, folder))
        level, found = deeper, here | found
    return found


def of_split(files: Sequence[Path], folder: Path, split: str | None) -> list[Path]:
    """The files of one split, by the word for it in their names below the folder.

    Args:
        files: in the folder.
        folder: that the user named.
        split: the user asked for; None: all files, unless their names tell of several splits.

    Raises:
        UserError: there are several splits and none is asked for, or not the one asked for.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        words = SPLIT_WORD.findall(str(path.relative_to(folder)))
        groups[words[-1].lower() if words else ""].append(path)
    names = sorted(filter(None, groups))
    if split is not None and split in names:
        return groups[split]
    if split is None and len(groups) < 2:
        return list(files)
    if split is None and len(names) == 1:  # among others: test data would be learned unnoticed
        raise UserError(
            f"{shown(folder)} holds {names[0]} and files of no split, {groups[''][0].name} for "
            f"one; name {shown(folder)}:{names[0]}, or put the others into a folder of their own"
        )
    raise wrong_split(folder, split, names)


def wrong_split(folder: Path, split: str | None, names: Sequence[str]) -> UserError:
    """What to say where a split is not there, or is to be chosen: the splits that there are."""
    if not names:
        return UserError(f"{shown(folder)} has no splits; leave out :{split}")
    given = f"has no split {split!r}" if split is not None else "holds several splits"
    some = ", ".join(names[:MOST_SHOWN])
    return UserError(f"{shown(folder)} {given} ({some}); name one: {shown(folder)}:{names[0]}")


def pictures_below(folder: Path, levels: int = 8) -> Iterator[str]:
    """The names of all picture files in a folder and its folders, relative to it."""
    waiting = [("", levels)]
    while waiting:
        inner, left = waiting.pop()
        found = entries(folder / inner)
        folders = [one.name for one in found if one.is_dir(follow_symlinks=False)] if left else []
        waiting += [(f"{inner}{name}/", left - 1) for name in reversed(folders)]
        for one in found:
            name = f"{inner}{one.name}"
            if ending(one.name) in PICTURE_ENDINGS and os.path.isfile(one):
                yield name


def listing(folder: Path) -> str:
    """What a folder holds, for messages: "12 .jsonl, 3 folders"."""
    kinds = Counter(
        "folder"
        if os.path.isdir(one)
        else f".{ending(one.name)}"
        if ending(one.name)
        else one.name[:40]
        for one in entries(folder)
    )
    told = [f"{count} {kind}" for kind, count in kinds.most_common(MOST_SHOWN)]
    return ", ".join(told + ["..."] * (len(kinds) > MOST_SHOWN)) or "nothing"


def head(path: Path, size: int) -> bytes:
    """The first bytes of a file.

    Raises:
        UserError: it is missing, no regular file, or cannot be read.
    """
    descriptor = open_regular(path, "data")
    try:
        return os.pread(descriptor, size, 0)
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {reason(error)}") from error
    finally:
        os.close(descriptor)

"""Which container lies at a path, by what is in it: shards, tables, folders of pictures."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from tuninglab.data.reading.folders import (
    ending,
    files_below,
    files_ending,
    head,
    listing,
    need_pyarrow,
    of_split,
    subfolders,
    wrong_split,
)
from tuninglab.data.reading.found import Found
from tuninglab.data.reading.image_folder import (
    class_folder,
    described_folder,
    keyed_folder,
    tables_of,
)
from tuninglab.data.reading.json_files import NO_TEXT, UTF16_MARKS, shown
from tuninglab.data.reading.mimic_it import BEGINNING, ENDING, mimic_it
from tuninglab.data.reading.tables import text_table
from tuninglab.data.reading.tars import BRACES, expanded, tar_shards
from tuninglab.errors import UserError

LOOKED_AT = 4096
PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"7z\xbc\xaf": ("7z", "7z x"),
}
PACKED_ENDINGS = ("gz", "tgz", "zst", "bz2", "xz", "zip", "7z")
TABLE_ENDINGS = ("csv", "tsv")
# Where a table has no telling ending: its first line names two columns or more.
NAMES = re.compile(r"[\w .()#-]{1,80}([,;\t][\w .()#-]{1,80})+\s*")


def container_of(path: str | Path, split: str | None = None) -> Found | None:
    """What lies at a path; None for a text file that is no table, JSON as it may be.

    Args:
        path: a file, a folder, or a name with braces for several (`{00000..00041}.tar`).
        split: of those that a folder holds; None: its only one.

    Raises:
        UserError: there is nothing, or nothing that can be read; it says what was found and what
            to do about it.
    """
    place = Path(path)
    if BRACES.search(str(path)) and not os.path.lexists(place):
        files, root = expanded(str(path)), place.parent
        root = root if not BRACES.search(str(root)) else Path(os.path.commonpath(files))
        kinds = {kind_of(head(file, LOOKED_AT), file) for file in files}
        found = _files(files, root, min(kinds, key=str)) if len(kinds) == 1 else None
        if found is None:
            raise UserError(f"{path} stands for files of several kinds, or JSON; name one by one")
    elif os.path.isdir(place):
        return _folder(place, split)
    else:
        found = _files([place], place.parent, kind_of(head(place, LOOKED_AT), place))
    # A document of JSON may have splits of its own.
    if split is not None and found is not None:
        raise wrong_split(place, split, [])
    return found


def kind_of(beginning: bytes, file: Path) -> str | None:
    """What a file is, by its first bytes: tar, parquet, arrow, mimic, table; None: none of these.

    Raises:
        UserError: it is packed, so that nothing in it can be read at random.
    """
    for magic, (name, command) in PACKED.items():
        if beginning.startswith(magic):
            raise UserError(
                f"{shown(file)} is packed with {name}, which lets nothing be read at random; "
                f"unpack it: {command} {shown(file)}"
            )
    if beginning[257:262] == b"ustar":
        return "tar"
    if beginning.startswith(b"PAR1"):
        return "parquet"
    if beginning.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if file.name.endswith(ENDING) and BEGINNING.match(beginning):
        return "mimic"
    return "table" if _is_table(beginning, file) else None


def _is_table(beginning: bytes, file: Path) -> bool:
    named = ending(file.name) in TABLE_ENDINGS
    if beginning.startswith(UTF16_MARKS):
        return named
    text = beginning.decode("utf-8-sig", "replace").lstrip()
    # JSON under the name of a table is JSON.
    if NO_TEXT.search(beginning) or text.startswith(("{", "[")) or not text:
        return False
    return named or NAMES.fullmatch(re.split("[\r\n]", text)[0]) is not None


def _files(files: Sequence[Path], root: Path, kind: str | None) -> Found | None:
    """Files of one kind as one set of records."""
    if kind == "tar":
        return tar_shards(files)
    if kind == "parquet":
        need_pyarrow(files[0])
        from tuninglab.data.reading.parquet import parquet_files

        return parquet_files(files, root)
    if kind == "arrow":
        need_pyarrow(files[0])
        from tuninglab.data.reading.arrow_files import arrow_files

        return arrow_files(files, root)
    if kind == "mimic":
        return mimic_it(files, root)
    if kind == "table" and len(files) == 1:
        return text_table(files[0])
    return None


def _folder(folder: Path, split: str | None) -> Found:
    """What a folder holds, looked for in this order.

    Raises:
        UserError: nothing that is known, or several splits of which none was asked for.
    """
    if any(os.path.isfile(folder / name) for name in ("dataset_dict.json", "state.json")):
        need_pyarrow(folder)
        from tuninglab.data.reading.arrow_files import saved_folder

        return saved_folder(folder, split)
    if tables := tables_of(folder):
        return described_folder(folder, tables, split)
    below = files_below(folder, "tar", "parquet", "arrow")
    # Tables about pictures lie beside them: what they tell of comes before parquet.
    instructions = [one for one in files_ending(folder, "json") if one.name.endswith(ENDING)]
    if "tar" not in below and instructions:
        found = mimic_it(instructions, folder)
    elif "tar" not in below and _is_fetched(folder) and (keyed := keyed_folder(folder)):
        found = keyed
    elif below:
        kind = next(kind for kind in ("tar", "parquet", "arrow") if kind in below)
        found = _files(of_split(below[kind], folder, split), folder, kind)
        split = None
    elif keyed := keyed_folder(folder):
        found = keyed
    else:
        found, split = class_folder(folder, split), None
    if found is None:
        raise _unknown(folder)
    if split is not None:
        raise wrong_split(folder, split, [])
    return found


def _is_fetched(folder: Path) -> bool:
    """Whether img2dataset wrote it as files: folders of pictures, and a table about each."""
    return any(
        os.path.isfile(folder / f"{one.name}{end}")
        for one in subfolders(folder)
        for end in (".parquet", "_stats.json")
    )


def _unknown(folder: Path) -> UserError:
    if packed := files_ending(folder, *PACKED_ENDINGS):
        return UserError(
            f"{shown(folder)} holds {listing(folder)}; unpack them first (gunzip, unzstd, unzip), "
            f"{packed[0].name} for one"
        )
    return UserError(
        f"{shown(folder)} is no folder of data that is known: it holds {listing(folder)}. "
        "Expected tar shards, parquet, what datasets saved, pictures with metadata.jsonl or .csv, "
        "with a .txt beside each, or in a folder for each class; name a JSON file itself"
    )

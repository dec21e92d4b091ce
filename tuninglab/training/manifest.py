"""The manifest of a checkpoint: a sha256 of each of its files, by which damage is noticed."""

import hashlib
import json
from pathlib import Path

from tuninglab.errors import UserError
from tuninglab.untrusted import MIB, read_json, shown

MANIFEST = "manifest.json"
LARGEST = MIB


def write_manifest(folder: Path) -> None:
    """Write the manifest of a folder that is otherwise whole.

    Raises:
        OSError: the disk is full.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    sums = {name: sha256_of(folder / name) for name in names}
    (folder / MANIFEST).write_text(json.dumps({"sha256": sums}, indent=2) + "\n", "utf-8")


def damage_of(folder: Path) -> str:
    """What differs from the manifest, in words; empty if nothing does, or there is no manifest."""
    if not (folder / MANIFEST).exists():
        return ""
    try:
        held = read_json(folder / MANIFEST, LARGEST, "manifest")
    except UserError as error:
        return str(error)
    sums = held.get("sha256") if isinstance(held, dict) else None
    if not isinstance(sums, dict) or not sums:
        return f"{MANIFEST} names no files"
    for name, expected in sums.items():
        try:
            # A pipe would be waited for without end.
            found = sha256_of(folder / name) if (folder / name).is_file() else "none"
        except (OSError, ValueError) as error:
            return f"{shown(name)} cannot be read: {error}"
        if found != expected:
            return f"{shown(name)} is {'missing' if found == 'none' else 'not as it was written'}"
    return ""


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

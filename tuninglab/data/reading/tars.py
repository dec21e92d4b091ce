"""Shards: tars whose members of one key are a sample; pictures stay where they lie in there."""

import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby, islice, product
from operator import itemgetter
from pathlib import Path

from tuninglab.data.reading.found import Found, RawRecord, Reading
from tuninglab.data.reading.json_files import shown
from tuninglab.data.reading.keyed_files import MOST_FILES, KeyedFile, record_of, split_key
from tuninglab.data.reading.slices import Slice
from tuninglab.data.reading.tar_members import Member, members, opened
from tuninglab.errors import UserError

BRACES = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}|\{([^{}]*,[^{}]*)\}")
MOST_SHARDS = 1_000_000
NO_KEY = "members without a name before or behind a dot left out"


def tar_shards(files: Sequence[Path]) -> Found:
    """Shards as one set of records, in the order of the files given."""
    what = "a tar of samples" if len(files) == 1 else f"{len(files)} shards (tar)"
    return Found(what, list(files), partial(_records, list(files)), files[0].parent)


def expanded(name: str) -> list[Path]:
    """The files that a name with braces stands for: `{00000..00041}.tar`, `{train,val}.tar`.

    Raises:
        UserError: they are too many, or the first of them that is missing.
    """
    parts, end, count = [], 0, 1
    for found in BRACES.finditer(name):
        parts += [[name[end : found.start()]], _choices(found)]
        count, end = count * len(parts[-1]), found.end()
        if count > MOST_SHARDS:
            raise UserError(f"{name} stands for more than {MOST_SHARDS:,} files; name a folder")
    files = [Path("".join(choice)) for choice in product(*parts, [name[end:]])]
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(files)} files of {name} are missing, first "
            f"{shown(missing[0])}; check the path and the numbers"
        )
    return files


def _choices(braces: re.Match[str]) -> Sequence[str]:
    first, last, words = braces.groups()
    if words is not None:
        return words.split(",")
    if int(last) - int(first) >= MOST_SHARDS:
        raise UserError(f"{braces[0]} stands for more than {MOST_SHARDS:,} files; name a folder")
    if int(last) < int(first):
        raise UserError(f"{braces[0]} counts down; write {{{last}..{first}}}")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _records(files: Sequence[Path], reading: Reading) -> Iterator[RawRecord]:
    for file in files:
        with opened(file) as descriptor:
            yield from _samples(file, descriptor, reading)


def _samples(file: Path, descriptor: int, reading: Reading) -> Iterator[RawRecord]:
    """The samples of one tar; of the members only those of one sample are held."""
    # Hashes, not the names, which may be long: a hundred bytes a sample in any case.
    seen: set[int] = set()
    for key, group in groupby(_keyed(file, descriptor, reading), key=itemgetter(0)):
        origin = f"{shown(file)}: {ascii(key)[1:-1] if not key.isprintable() else key}"
        found = list(islice(group, MOST_FILES + 1))
        if hash(key) in seen:
            yield (
                origin,
                ValueError(
                    "members of this sample stand apart in the tar, or it is there twice; pack it "
                    "anew in the order of names: tar --sort=name -cf NEW.tar FOLDER"
                ),
            )
            continue
        seen.add(hash(key))
        try:
            record = _record(key, found, file, descriptor, reading)
        except ValueError as error:
            yield origin, error
            continue
        if record is not None:
            yield origin, record


def _keyed(file: Path, descriptor: int, reading: Reading) -> Iterator[tuple[str, str, Member]]:
    """(key, field, member) of all members that have a key."""
    for member in members(descriptor, file):
        parts = split_key(member.name)
        if parts is None:
            reading.notes[NO_KEY] += 1
        else:
            yield *parts, member


def _record(
    key: str,
    found: Sequence[tuple[str, str, Member]],
    file: Path,
    descriptor: int,
    reading: Reading,
):
    links = [member.name for _, _, member in found if member.link]
    if links:
        # What they lead to may lie anywhere, also in another sample.
        raise ValueError(
            f"{links[0]} is a link; pack the tar with the files: tar --dereference "
            "--hard-dereference -cf NEW.tar FOLDER"
        )
    fields = [
        KeyedFile(
            field,
            Slice(file, member.offset, member.size, member.name),
            member.size,
            partial(os.pread, descriptor, member.size, member.offset),
        )
        for _, field, member in found
    ]
    return record_of(key, fields, reading)

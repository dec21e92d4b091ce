"""Samples that share pictures, so that none is trained on and scored with the same picture."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tuninglab.console import say
from tuninglab.data.picture_files import ConfinedPath
from tuninglab.data.reading.store import Table, table_of
from tuninglab.data.sample import StoredPicture
from tuninglab.data.sources import Source, picture_digest
from tuninglab.errors import UserError


def split_validation(
    samples: Sequence[Any], fraction: float, seed: int = 0
) -> tuple[list[Any], list[Any]]:
    """Training and validation samples, drawn by the seed; both keep the order of the file.

    Raises:
        UserError: as `validation_rows`.
    """
    if fraction == 0:
        return list(samples), []
    held = set(validation_rows(picture_keys(samples), fraction, seed))
    training = [sample for index, sample in enumerate(samples) if index not in held]
    return training, [sample for index, sample in enumerate(samples) if index in held]


def validation_rows(keys: Sequence[Sequence[Any]], fraction: float, seed: int = 0) -> list[int]:
    """Numbers of the samples held out, about a fraction of all, in order.

    Samples that share a picture are drawn together: asked about a picture that it was trained on, a
    model is scored on what it remembers.

    Args:
        keys: of each sample's pictures.
        fraction: above 0.
        seed: draws.

    Raises:
        UserError: the fraction is not within [0, 1), or leaves one of the two parts empty.
    """
    # NaN fails this comparison as well.
    if not 0 < fraction < 1:
        raise UserError(f"val_split is {fraction}; expected 0 (none) or more, and less than 1")
    count = max(1, round(len(keys) * fraction))
    groups = groups_of(keys)
    if count >= len(keys) or len(groups) == 1:
        why = ", which all share pictures," if len(keys) > len(groups) == 1 else ""
        raise UserError(
            f"val_split {fraction} of {len(keys)} samples{why} leaves none to train on; give "
            "more data, a smaller part, or a file of its own (--val_data)"
        )
    drawn = _draw([len(group) for group in groups], count, seed)
    chosen = sorted(number for index in drawn for number in groups[index])
    if len(groups) < len(keys):
        say(
            f"{len(keys):,} records in {len(groups):,} groups that share pictures; "
            f"{len(drawn):,} groups, {len(chosen):,} records for validation"
        )
    return chosen


def _draw(sizes: list[int], count: int, seed: int) -> list[int]:
    """Numbers of groups with about `count` members, at most half a group from it; never all."""
    taken, drawn = 0, []
    for index in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        # Only what brings the sum nearer: a picture of half of the records stays in training.
        if sizes[index] < 2 * (count - taken) and len(drawn) + 1 < len(sizes):
            drawn.append(index)
            taken += sizes[index]
    return drawn or [sizes.index(min(sizes))]


def picture_groups(samples: Sequence[Any]) -> list[list[int]]:
    """The numbers of the samples in groups; no two groups have a picture in common."""
    return groups_of(picture_keys(samples))


def groups_of(keys: Sequence[Sequence[Any]]) -> list[list[int]]:
    """The numbers of rows in groups; no two groups have a key in common.

    A row without keys is a group of its own.
    """
    parents = list(range(len(keys)))

    def root(number: int) -> int:
        while parents[number] != number:
            # Halving the way keeps later ones short.
            parents[number] = number = parents[parents[number]]
        return number

    first: dict[Any, int] = {}
    for number, row in enumerate(keys):
        for key in row:
            one, other = root(first.setdefault(key, number)), root(number)
            parents[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for number in range(len(keys)):
        groups.setdefault(root(number), []).append(number)
    return list(groups.values())


def keys_of(sources: Sequence[Source]) -> list[list[list[Any]]]:
    """Keys of the samples of each source, as of `picture_keys`.

    Where all pictures are known, no sample is read. If of some only the headers were, those are the
    keys of all: a picture that was read whole in one source is then known in another.
    """
    known = [table for source in sources if (table := table_of(source)) is not None]
    if len(known) < len(sources):
        # Keys of different kinds would never be equal.
        return [picture_keys(source) for source in sources]
    digests = contents_of(known)
    return [
        [[own[n] for n in pictures.tolist()] for pictures in table.pictures_of()]
        for table, own in zip(known, digests, strict=True)
    ]


def contents_of(tables: Sequence[Table]) -> list[list[bytes]]:
    """What tells the pictures of some tables apart, by number; equal where two are alike."""
    name = "digests" if all(table.is_exact() for table in tables) else "heads"
    return [[digest.tobytes() for digest in getattr(table, name)] for table in tables]


def picture_keys(samples: Iterable[Any]) -> list[list[int | str]]:
    """A key of each sample's pictures; two are equal exactly where the pictures' contents are."""
    rows = [[_place(image) for image in getattr(sample, "images", ())] for sample in samples]
    places = {place for row in rows for place in row if not isinstance(place, Image.Image)}
    sizes = {p: p.stat().st_size if isinstance(p, Path) else len(p) for p in places}
    alike = Counter(sizes.values())
    # A size that no other file has is a key already, so that few files of a large set are read.
    keys = {p: picture_digest(p) if alike[size] > 1 else size for p, size in sizes.items()}
    return [
        [picture_digest(p) if isinstance(p, Image.Image) else keys[p] for p in row] for row in rows
    ]


def _place(image: Any) -> Any:
    # Resolving a confined path once more would follow what became a link since.
    if isinstance(image, StoredPicture):
        return image.read()
    known = isinstance(image, bytes | Image.Image | ConfinedPath)
    return image if known else Path(image).resolve()

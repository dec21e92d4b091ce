"""Figures of the pictures of data: how many, how large, what is wrong, which are seen twice."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from tuninglab.data.images import check_picture
from tuninglab.data.picture_files import confined_path, open_picture
from tuninglab.data.reading.entries import looked_pictures
from tuninglab.data.reading.groups import contents_of, keys_of
from tuninglab.data.reading.store import StoredSamples, table_of
from tuninglab.data.sample import ImageSource, StoredPicture
from tuninglab.data.sources import Source
from tuninglab.errors import UserError
from tuninglab.progress import working

# Pictures that are opened once more, for their size; of more, as many from all over the data.
MEASURED = 20_000
WRONG = ("missing", "corrupt", "refused")


def picture_figures(sources: Sequence[Source], most: int = MEASURED) -> dict[str, Any]:
    """Uses, different contents, and sizes of the pictures of some sources."""
    places = [(source, place) for source in sources for place in first_uses(source)]
    step = np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)
    sizes = np.empty((len(step), 3), np.int64)
    with working("measuring pictures", len(step)) as note:
        for row, at in enumerate(step.tolist()):
            source, (number, which) = places[at]
            sizes[row] = measured(source[number].images[which])
            note(row + 1)
    names = zip(("bytes", "width", "height"), sizes.T, strict=True)
    return {
        "uses": sum(int(table.counts.sum()) for source in sources if (table := table_of(source))),
        "unique": len(used_contents([sources])[0]),
        "measured": len(step),
        **{name: middle(column) for name, column in names},
    }


def middle(values: np.ndarray) -> dict[str, int] | None:
    """The least, the middle (the lower of two) and the largest; None of nothing."""
    if not len(values):
        return None
    ordered = np.sort(values)
    picked = {"min": 0, "median": (len(values) - 1) // 2, "max": -1}
    return {name: int(ordered[at]) for name, at in picked.items()}


def measured(picture: ImageSource) -> tuple[int, int, int]:
    """Bytes, width and height (pixels) of a picture, by the header of its file.

    Raises:
        UserError: it has changed since it was checked.
    """
    if isinstance(picture, StoredPicture):
        data = picture.read()
        return len(data), *check_picture(BytesIO(data), f"picture {picture.name}", whole=False)
    path: Any = picture
    with open_picture(path) as file:
        size = os.fstat(file.fileno()).st_size
        return size, *check_picture(file, f"picture {path}", whole=False)


def first_uses(source: Source) -> list[tuple[int, int]]:
    """Of each picture the first sample that has it, and which of its pictures it is."""
    if (table := table_of(source)) is None or not len(table.pictures):
        return []
    places = np.sort(np.unique(table.pictures, return_index=True)[1])
    ends = np.cumsum(table.counts)
    samples = np.searchsorted(ends, places, side="right")
    which = places - (ends - table.counts)[samples]
    return list(zip(samples.tolist(), which.tolist(), strict=True))


def used_contents(sides: Sequence[Sequence[Source]]) -> list[set[bytes]]:
    """The contents of all pictures that samples have, on each side of a comparison."""
    tables = [[table for source in side if (table := table_of(source))] for side in sides]
    contents = iter(contents_of([table for side in tables for table in side]))
    return [
        {own[n] for table in side for own in [next(contents)] for n in np.unique(table.pictures)}
        for side in tables
    ]


def digests_of(source: Source) -> Iterator[list[bytes]]:
    """Digests of the pictures of each sample, in order."""
    if (table := table_of(source)) is not None:
        digests = table.digests
        yield from ([digests[n].tobytes() for n in row] for row in table.pictures_of())


def shared_pictures(train: Sequence[Source], val: Sequence[Source]) -> dict[str, Any]:
    """Pictures that are in training and validation data, and the validation samples with them."""
    shared = set.intersection(*used_contents([train, val]))
    rows = [
        (source, number)
        for source, keys in zip(val, keys_of([*train, *val])[len(train) :], strict=True)
        for number, row in enumerate(keys)
        if not shared.isdisjoint(row)
    ]
    examples = [source[number].origin for source, number in rows[:5]]
    return {"pictures": len(shared), "samples": len(rows), "examples": examples}


def wrong_pictures(stored: StoredSamples) -> Counter[str]:
    """How many pictures of a set are missing, corrupt, or refused because of their name."""
    found: Counter[str] = Counter()
    for name, look in zip(*looked_pictures(stored.folder), strict=True):
        if look.problem:
            found[_kind(name, look.size, stored.root)] += 1
    return found


def _kind(name: str, size: int, root: Path) -> str:
    try:
        if name:
            confined_path(name, root)
    except UserError:
        return "refused"
    # As `stamp_of` has it where there is no file.
    return "missing" if size < 0 else "corrupt"

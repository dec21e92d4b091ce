"""Training and validation samples of a run, no picture on both sides."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tuninglab.console import say
from tuninglab.data.picture_files import ConfinedPath
from tuninglab.data.reading.dialogues import read_samples, settle
from tuninglab.data.reading.pairs import read_pairs
from tuninglab.data.sample import StoredPicture
from tuninglab.data.sources import Records, Source, Splits, picture_digest
from tuninglab.errors import UserError
from tuninglab.progress import working


def read_splits(
    data: str,
    image_root: str | None = None,
    val_data: str | None = None,
    val_split: float = 0.0,
    seed: int = 0,
    skip_bad_records: bool = False,
) -> Splits:
    """Read and check the samples of a file, with validation samples from another or a share of it.

    Raises:
        UserError: a file or record is wrong (all records are checked), or cannot be split so.
    """
    read = partial(read_samples, image_root=image_root, skip_bad_records=skip_bad_records)
    return _split(read, data, val_data, val_split, seed)


def read_pair_splits(
    data: str,
    val_data: str | None = None,
    val_split: float = 0.0,
    seed: int = 0,
    skip_bad_records: bool = False,
) -> Splits:
    """Read and check the text pairs of a file, as `read_splits` does with dialogues.

    Raises:
        UserError: as `read_splits`.
    """
    read = partial(read_pairs, skip_bad_records=skip_bad_records)
    return _split(read, data, val_data, val_split, seed)


def _split(
    read: Callable[[str], Records], data: str, val_data: str | None, val_split: float, seed: int
) -> Splits:
    records = read(data)
    if val_data:
        val = read(val_data)
        with working("comparing the pictures of both files"):
            _tell_shared_pictures(records, val)
        return Splits(Path(data).name, records, val, records.skipped + val.skipped)
    with working("looking for records that share pictures"):
        train, held_out = split_validation(records, val_split, seed)
    return Splits(Path(data).name, Records(train), Records(held_out), records.skipped)


def split_validation(
    samples: Sequence[Any], fraction: float, seed: int = 0
) -> tuple[list[Any], list[Any]]:
    """Training and validation samples, drawn by the seed; both keep the order of the file.

    Samples that share a picture are drawn together: asked about a picture that it was trained on, a
    model is scored on what it remembers.

    Raises:
        UserError: the fraction is not within [0, 1), or leaves one of the two parts empty.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"val_split is {fraction}; expected 0 (none) or more, and less than 1")
    # NaN fails the comparison above as well.
    if fraction == 0:
        return list(samples), []
    count = max(1, round(len(samples) * fraction))
    groups = picture_groups(samples)
    if count >= len(samples) or len(groups) == 1:
        why = ", which all share pictures," if len(samples) > len(groups) == 1 else ""
        raise UserError(
            f"val_split {fraction} of {len(samples)} samples{why} leaves none to train on; give "
            "more data, a smaller part, or a file of its own (--val_data)"
        )
    drawn = _draw([len(group) for group in groups], count, seed)
    chosen = {number for index in drawn for number in groups[index]}
    if len(groups) < len(samples):
        say(
            f"{len(samples):,} records in {len(groups):,} groups that share pictures; "
            f"{len(drawn):,} groups, {len(chosen):,} records for validation"
        )
    training = [sample for index, sample in enumerate(samples) if index not in chosen]
    return training, [sample for index, sample in enumerate(samples) if index in chosen]


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
    """The numbers of the samples in groups; no two groups have a picture in common.

    A sample without pictures is a group of its own.
    """
    parents = list(range(len(samples)))

    def root(number: int) -> int:
        while parents[number] != number:
            # Halving the way keeps later ones short.
            parents[number] = number = parents[parents[number]]
        return number

    first: dict[int | str, int] = {}
    for number, keys in enumerate(picture_keys(samples)):
        for key in keys:
            one, other = root(first.setdefault(key, number)), root(number)
            parents[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for number in range(len(samples)):
        groups.setdefault(root(number), []).append(number)
    return list(groups.values())


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


def _tell_shared_pictures(train: Records, val: Records) -> None:
    """Say which validation samples show a picture that is trained on."""
    keys = picture_keys([*train, *val])
    trained = {key for row in keys[: len(train)] for key in row}
    rows = zip(val, keys[len(train) :], strict=True)
    shared = [sample.origin for sample, row in rows if not trained.isdisjoint(row)]
    if shared:
        say(
            f"{len(shared):,} of {len(val):,} validation records show a picture that is in the "
            f"training data too, for example {shared[0]}: scores on them tell little about new "
            "pictures. Take those records out of one of the two files."
        )


def fit(splits: Splits, count: Callable[[Any], int], longest: int, skip: bool) -> Splits:
    """The splits without samples of more than `longest` tokens, which count as skipped.

    `count` says how many tokens a sample has.

    Raises:
        DataError: samples are too long and may not be skipped, or none is left.
    """

    def part(samples: Source) -> Source:
        """The samples of one split that are short enough."""
        lengths = []
        with working("counting tokens", len(samples)) as note:
            for sample in samples:
                lengths.append(count(sample))
                note(len(lengths))
        rows = list(zip(samples, lengths, strict=True))
        # Cutting would take the answer, or its end, away from the question: never silently.
        problems = [
            f"{sample.origin}: {length:,} tokens, at most {longest:,} (what the language model "
            "can read, or --max_tokens); shorten the texts or split the dialogue"
            for sample, length in rows
            if length > longest
        ]
        settle(splits.name, problems, skip, len(problems), len(rows))
        return Records([sample for sample, length in rows if length <= longest])

    train, val = part(splits.train), part(splits.val)
    left_out = len(splits.train) + len(splits.val) - len(train) - len(val)
    return replace(splits, train=train, val=val, skipped=splits.skipped + left_out)

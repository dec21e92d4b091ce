"""Training and validation samples of a run, no picture on both sides."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuninglab.config.data import Data, DataPart, MixConfig, parts_of, split_path
from tuninglab.console import say
from tuninglab.data.mixture import Joined, described, rows_by_size, rows_by_weight
from tuninglab.data.reading.groups import keys_of, validation_rows
from tuninglab.data.reading.opening import Wishes, open_part
from tuninglab.data.reading.pairs import read_pairs
from tuninglab.data.reading.store import Chosen
from tuninglab.data.sources import Records, Source, Splits
from tuninglab.errors import UserError
from tuninglab.progress import working


def read_splits(
    data: Data,
    image_root: str | None = None,
    val_data: Data | None = None,
    val_split: float = 0.0,
    seed: int = 0,
    skip_bad_records: bool = False,
    mix: MixConfig | None = None,
    **wishes: Any,
) -> Splits:
    """Read and check the samples of one or several sets, with validation samples beside.

    Args:
        data: path or parts, as `parts_of` takes them.
        image_root: the folder that names of pictures start from; None: where the data lies.
        val_data: sets of validation samples.
        val_split: or the share of `data` that is held out.
        seed: of all that is drawn.
        skip_bad_records: leave wrong records out and say so.
        mix: how several sets become an epoch.
        wishes: the other fields of `Wishes`.

    Raises:
        UserError: a file or record is wrong (all records are checked), or cannot be split so.
    """
    how = Wishes(image_root, skip_bad_records, seed=seed, **wishes)
    return _split(lambda part: open_part(part, how), data, val_data, val_split, seed, mix)


def read_pair_splits(
    data: Data,
    val_data: Data | None = None,
    val_split: float = 0.0,
    seed: int = 0,
    skip_bad_records: bool = False,
) -> Splits:
    """Read and check the text pairs of a file, as `read_splits` does with dialogues.

    Raises:
        UserError: as `read_splits`.
    """

    def read(part: DataPart) -> Source:
        refuse_shares(part)
        return read_pairs(part.path, skip_bad_records=skip_bad_records)

    return _split(read, data, val_data, val_split, seed, MixConfig())


def _split(
    read: Callable[[DataPart], Source],
    data: Data,
    val_data: Data | None,
    val_split: float,
    seed: int,
    mix: MixConfig | None,
) -> Splits:
    parts = parts_of(data) or []
    train = [read(part) for part in parts]
    val_parts = parts_of(val_data) or []
    val = [read(part) for part in val_parts]
    skipped = sum(source.skipped for source in [*train, *val])
    if val:
        with working("comparing the pictures of training and validation data"):
            _tell_shared_pictures(train, val)
    else:
        with working("looking for records that share pictures"):
            train, val = _held_out(train, val_split, seed)
        val_parts = parts
    name = " + ".join(Path(split_path(part.path)[0][0]).name for part in parts[:3])
    name += " + ..." * (len(parts) > 3)
    return Splits(name, joined(parts, train, mix or MixConfig()), _laid(val_parts, val), skipped)


def joined(parts: Sequence[DataPart], sources: list[Source], mix: MixConfig) -> Source:
    """The sources of all parts as one, with how much an epoch takes of each; says it.

    Raises:
        UserError: weights and repeats are given together, or an epoch would leave a set out.
    """
    weighted = any(part.weight is not None for part in parts)
    by_weight = mix.strategy == "weights" or (mix.strategy is None and weighted)
    sizes = [len(source) for source in sources]
    if weighted and not by_weight:
        raise UserError("A part of the data has a weight, but --mix.strategy is concat.")
    if by_weight and any(part.repeat is not None for part in parts):
        raise UserError("Parts of the data have weights and repeats; give all of them weights.")
    repeats = [part.repeat or 1.0 for part in parts]
    if len(parts) == 1 and repeats == [1.0] and mix.epoch_rows is None:
        return sources[0]
    if by_weight:
        weights = [1.0 if part.weight is None else part.weight for part in parts]
        counts = rows_by_weight(weights, mix.epoch_rows or sum(sizes))
    else:
        counts = rows_by_size(sizes, repeats, mix.temperature, mix.epoch_rows)
    by_size = not by_weight and mix.temperature == 1.0 and mix.epoch_rows is None
    mixture = Joined(_names(parts), sources, counts, repeats if by_size else None)
    for line in described(mixture):
        say(line)
    if 0 in counts:
        left_out = mixture.names[counts.index(0)]
        raise UserError(f"An epoch of {sum(counts):,} rows has none of {left_out}; take more rows.")
    return mixture


def _laid(parts: Sequence[DataPart], sources: list[Source]) -> Source:
    filled = [(name, source) for name, source in zip(_names(parts), sources, strict=True) if source]
    if len(filled) == 1:
        return filled[0][1]
    return Joined([name for name, _ in filled], [source for _, source in filled])


def _names(parts: Sequence[DataPart]) -> list[str]:
    """What to call each part: the name of its file; where that is not one alone, its path."""
    short = Counter(Path(part.path).name for part in parts)
    own = [Path(part.path).name for part in parts]
    names = [name if short[name] == 1 else parts[k].path for k, name in enumerate(own)]
    again: Counter[str] = Counter()
    for k, name in enumerate(names):
        again[name] += 1
        names[k] = name if again[name] == 1 else f"{name} ({again[name]})"
    return names


def refuse_shares(part: DataPart) -> None:
    """Refuse what only sets of dialogues have.

    Raises:
        UserError: naming it.
    """
    given = [
        name
        for name in ("weight", "repeat", "limit", "format", "image_root")
        if getattr(part, name) is not None
    ]
    if given or split_path(part.path)[1]:
        what = given[0] if given else split_path(part.path)[1]
        raise UserError(f"data: {part.path}: pairs of texts are read whole; leave out {what}.")


def _held_out(
    sources: list[Source], fraction: float, seed: int
) -> tuple[list[Source], list[Source]]:
    """The sources without the rows held out, and those rows of each."""
    if fraction == 0:
        return sources, [Records([]) for _ in sources]
    keys = [row for rows in keys_of(sources) for row in rows]
    held = np.zeros(len(keys), bool)
    held[validation_rows(keys, fraction, seed)] = True
    train, val, start = [], [], 0
    for source in sources:
        mine = held[start : start + len(source)]
        train.append(chosen(source, np.flatnonzero(~mine)))
        val.append(chosen(source, np.flatnonzero(mine)))
        start += len(source)
    empty = [k for k, source in enumerate(train) if not source]
    if empty:
        raise UserError(f"val_split {fraction} leaves nothing of one of the sets to train on")
    return train, val


def chosen(source: Source, numbers: np.ndarray) -> Source:
    """Some samples of a source, by number."""
    if isinstance(source, Records):
        return Records([source[number] for number in numbers.tolist()])
    if isinstance(source, Chosen):
        return Chosen(source.source, source.numbers[numbers])
    return Chosen(source, numbers)


def _tell_shared_pictures(train: list[Source], val: list[Source]) -> None:
    """Say which validation samples show a picture that is trained on."""
    keys = keys_of([*train, *val])
    trained = {key for rows in keys[: len(train)] for row in rows for key in row}
    shared = [
        (source, number)
        for source, rows in zip(val, keys[len(train) :], strict=True)
        for number, row in enumerate(rows)
        if not trained.isdisjoint(row)
    ]
    if shared:
        source, number = shared[0]
        say(
            f"{len(shared):,} of {sum(map(len, val)):,} validation records show a picture that is "
            f"in the training data too, for example {source[number].origin}: scores on them tell "
            "little about new pictures. Take those records out of one of the two files."
        )

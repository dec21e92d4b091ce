"""Training and validation samples of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuninglab.console import say
from tuninglab.data.batches import dialogue_tokens, split_too_long
from tuninglab.data.pairs import read_pairs
from tuninglab.data.readers import read_samples
from tuninglab.data.sampler import split_validation
from tuninglab.errors import DataError


@dataclass
class Splits:
    """Training and validation samples, what to call them in the report, and how many were bad.

    Samples are dialogues (`Sample`) or texts (`Pair`).
    """

    name: str
    train: Sequence[Any]
    val: Sequence[Any]
    skipped: int = 0


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
        UserError: a file or record is wrong; all records are checked.
    """
    return _split(
        lambda path: read_samples(path, image_root, skip_bad_records),
        *(data, val_data, val_split, seed),
    )


def read_pair_splits(
    data: str,
    val_data: str | None = None,
    val_split: float = 0.0,
    seed: int = 0,
    skip_bad_records: bool = False,
) -> Splits:
    """Read and check the text pairs of a file, as `read_splits` does with dialogues.

    Raises:
        UserError: a file or record is wrong; all records are checked.
    """
    return _split(lambda path: read_pairs(path, skip_bad_records), data, val_data, val_split, seed)


def _split(
    read: Callable[[str], tuple[list[Any], list[str]]],
    data: str,
    val_data: str | None,
    val_split: float,
    seed: int,
) -> Splits:
    samples, skipped = read(data)
    if val_data:
        val, more = read(val_data)
        return Splits(Path(data).name, samples, val, len(skipped) + len(more))
    return Splits(Path(data).name, *split_validation(samples, val_split, seed), len(skipped))


def fitting_samples(
    samples: Sequence[Any],
    tokenizer: Any,
    longest: int,
    skip: bool,
    count: Callable[[Any, Any], int] = dialogue_tokens,
) -> Sequence[Any]:
    """The samples of at most `longest` tokens; with `skip`, the others are left out and counted.

    `count` says how many tokens a sample has.

    Raises:
        DataError: samples are too long and may not be skipped, or none is left.
    """
    fitting, problems = split_too_long(samples, tokenizer, longest, count)
    if problems and not (skip and fitting):
        raise DataError(problems, "Shorten them, or go on without: --skip_bad_records")
    if problems:
        say(f"{len(problems)} of {len(samples)} samples exceed {longest} tokens and are left out:")
        say("\n".join(f"  {line}" for line in problems[: DataError.SHOWN]))
    return fitting

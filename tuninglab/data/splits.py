"""Training and validation samples of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuninglab.console import say
from tuninglab.data.batches import split_too_long
from tuninglab.data.readers import read_samples
from tuninglab.data.sample import Sample
from tuninglab.data.sampler import split_validation
from tuninglab.errors import DataError


@dataclass
class Splits:
    """Training and validation samples, what to call them in the report, and how many were bad."""

    name: str
    train: Sequence[Sample]
    val: Sequence[Sample]
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
    samples, skipped = read_samples(data, image_root, skip_bad_records)
    if val_data:
        val, more = read_samples(val_data, image_root, skip_bad_records)
        return Splits(Path(data).name, samples, val, len(skipped) + len(more))
    return Splits(Path(data).name, *split_validation(samples, val_split, seed), len(skipped))


def fitting_samples(
    samples: Sequence[Sample], tokenizer: Any, longest: int, skip: bool
) -> Sequence[Sample]:
    """The samples of at most `longest` tokens; with `skip`, the others are left out and counted.

    Raises:
        DataError: samples are too long and may not be skipped, or none is left.
    """
    fitting, problems = split_too_long(samples, tokenizer, longest)
    if problems and not (skip and fitting):
        raise DataError(problems, "Shorten them, or go on without: --skip_bad_records")
    if problems:
        say(f"{len(problems)} of {len(samples)} samples exceed {longest} tokens and are left out:")
        say("\n".join(f"  {line}" for line in problems[: DataError.SHOWN]))
    return fitting

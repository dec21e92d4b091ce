"""How long samples are in tokens: counted many at a time, remembered, and bounded."""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from tuninglab.data.mixture import Joined
from tuninglab.data.reading.entries import held
from tuninglab.data.reading.opening import settle
from tuninglab.data.reading.splits import chosen
from tuninglab.data.reading.store import Chosen, StoredSamples
from tuninglab.data.sources import Source, Splits
from tuninglab.disk import whole_file
from tuninglab.errors import WorkError
from tuninglab.progress import working

# Samples counted together: the tokenizer then works in threads of its own.
AT_A_TIME = 2000

# Of a source, more than one sample in so many: then all of it is counted, to be remembered.
MOST_OF = 4

Count = Callable[[Sequence[Any]], Sequence[int] | Sequence[Sequence[int]]]


def lengths_of(samples: Source | Sequence[Any], count: Count, key: str | None) -> np.ndarray:
    """Tokens of each sample (N,); of samples that are kept on disk they are kept beside them.

    Args:
        samples: a split, or any samples.
        count: tokens of some samples; of several kinds, C numbers of each, which gives (N, C).
        key: all that the count depends on beside the samples; None: it is not remembered.
    """
    if isinstance(samples, Joined):
        return np.concatenate([lengths_of(source, count, key) for source in samples.sources])
    if isinstance(samples, Chosen) and key is not None and _is_known(samples, key):
        return lengths_of(samples.source, count, key)[samples.numbers]
    if not isinstance(samples, StoredSamples) or key is None:
        return _counted(samples, count)
    # Of the processes of a run one counts, and the others read what it found.
    with held(samples.folder):
        if (known := _kept(samples, key)) is not None:
            return known
        lengths = _counted(samples, count)
        # What cannot be kept is counted again at the next start.
        with suppress(WorkError), whole_file(_place(samples, key)) as file, file.open("wb") as out:
            np.save(out, lengths)
    return lengths


def _counted(samples: Sequence[Any], count: Count) -> np.ndarray:
    parts = [np.empty(0, np.int32)] if not len(samples) else []
    with working("counting tokens", len(samples)) as note:
        for start in range(0, len(samples), AT_A_TIME):
            parts.append(np.array(count(samples[start : start + AT_A_TIME]), np.int32))
            note(start + len(parts[-1]))
    return np.concatenate(parts)


def _is_known(samples: Chosen, key: str) -> bool:
    """Whether the lengths of all the source are known, or better be: few of many are not."""
    source = samples.source
    if len(samples) * MOST_OF > len(source):
        return True
    return isinstance(source, StoredSamples) and _kept(source, key) is not None


def _place(samples: StoredSamples, key: str) -> Any:
    digest = hashlib.sha256(f"{key} {samples.fingerprint}".encode()).hexdigest()[:16]
    return samples.folder / f"lengths-{digest}.npy"


def _kept(samples: StoredSamples, key: str) -> np.ndarray | None:
    with suppress(OSError, ValueError, EOFError):
        lengths = np.load(_place(samples, key))
        os.utime(_place(samples, key))
        if len(lengths) == len(samples):
            return lengths
    return None


def fit(
    splits: Splits, lengths: Callable[[Source], np.ndarray], longest: int, skip: bool
) -> Splits:
    """The splits without samples of more than `longest` tokens, which count as skipped.

    `lengths` says how many tokens each sample has.

    Raises:
        DataError: samples are too long and may not be skipped, or none is left.
    """

    def part(samples: Source) -> Source:
        """The samples of one split that are short enough."""
        if isinstance(samples, Joined):
            return samples.of([part(source) for source in samples.sources])
        tokens = lengths(samples)
        long = np.flatnonzero(tokens > longest).tolist()
        # Cutting would take the answer, or its end, away from the question: never silently.
        problems = [too_long(samples[n].origin, int(tokens[n]), longest) for n in long]
        settle(splits.name, problems, skip, len(problems), len(samples))
        return chosen(samples, np.flatnonzero(tokens <= longest)) if long else samples

    train, val = part(splits.train), part(splits.val)
    left_out = len(splits.train) + len(splits.val) - len(train) - len(val)
    return replace(splits, train=train, val=val, skipped=splits.skipped + left_out)


def too_long(origin: str, tokens: int, longest: int) -> str:
    """What is wrong with a sample of more than `longest` tokens."""
    return (
        f"{origin}: {tokens:,} tokens, at most {longest:,} (what the language model can read, or "
        "--max_tokens); shorten the texts or split the dialogue"
    )

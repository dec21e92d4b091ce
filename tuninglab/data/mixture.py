"""Several sources as one: how many rows an epoch takes of each, exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tuninglab.data.sources import Source, fingerprint

# A set that an epoch goes through more often is learned by heart before others are seen.
MANY_PASSES = 4


@dataclass
class Joined(Source):
    """Sources laid end to end.

    Args:
        names: what to call each, for messages and figures.
        sources: of samples of one kind.
        counts: rows of each in an epoch of training; None: all of each, once.
        repeats: how often an epoch goes through each, where `counts` follow from that.
    """

    names: list[str]
    sources: list[Source]
    counts: list[int] | None = None
    repeats: list[float] | None = None

    def __post_init__(self):
        self.starts = [0, *accumulate(map(len, self.sources))]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        which = next(k for k, start in enumerate(self.starts[1:]) if number < start)
        return self.sources[which][number - self.starts[which]]

    def of(self, sources: list[Source]) -> "Joined":
        """The same of other sources, such as these with some samples less."""
        counts = self.counts
        if self.repeats is not None:
            counts = rows_by_size(list(map(len, sources)), self.repeats)
        return Joined(self.names, sources, counts, self.repeats)

    @property
    def fingerprint(self) -> str:
        """Of all sources and of their shares."""
        return fingerprint([self.counts, *(source.fingerprint for source in self.sources)])

    @property
    def content(self) -> str:
        """As `fingerprint`, wherever pictures lie."""
        return fingerprint([self.counts, *(source.content for source in self.sources)])


def rows_by_weight(weights: Sequence[float], rows: int) -> list[int]:
    """So many rows shared out by weights, by the largest remainders; they sum up exactly."""
    total = sum(weights)
    shares = [rows * weight / total for weight in weights]
    counts = [int(share) for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda k: (counts[k] - shares[k], k))
    for k in by_rest[: rows - sum(counts)]:
        counts[k] += 1
    return counts


def rows_by_size(
    sizes: Sequence[int],
    repeats: Sequence[float],
    temperature: float = 1.0,
    rows: int | None = None,
) -> list[int]:
    """Rows of each source in an epoch, by how many it has.

    Args:
        sizes: rows of each source.
        repeats: how often an epoch goes through each.
        temperature: a share goes with (size * repeat)^(1/temperature): above 1, small sources get
            more than their rows (Arivazhagan et al. 2019, massively multilingual translation).
        rows: of an epoch; None: as many as all have.
    """
    wanted = [size * repeat for size, repeat in zip(sizes, repeats, strict=True)]
    if temperature == 1.0 and rows is None:
        return [max(1, round(count)) for count in wanted]
    total = round(sum(wanted)) if rows is None else rows
    return rows_by_weight([count ** (1 / temperature) for count in wanted], total)


def described(mixture: Joined) -> list[str]:
    """Rows, share and passes of each source in an epoch, a line each."""
    counts = mixture.counts or list(map(len, mixture.sources))
    lines = []
    for name, source, count in zip(mixture.names, mixture.sources, counts, strict=True):
        passes = count / len(source)
        often = " (each row many times: less weight, or more data)" if passes > MANY_PASSES else ""
        share = f"{count / sum(counts):.1%} of an epoch"
        lines.append(f"{name}: {count:,} rows, {share}, {passes:.2f} passes{often}")
    return lines

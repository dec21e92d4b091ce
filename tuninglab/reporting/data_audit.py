"""The verb `data`: what a training would read and learn of data, and what is wrong with it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tuninglab.config import DataConfig
from tuninglab.config.data import DataPart, parts_of
from tuninglab.data.mixture import Joined
from tuninglab.data.reading.audit import (
    SHOWN_LETTERS,
    Tally,
    blind_figures,
    contradicting,
    frequent_figures,
    guessed,
    repeated,
    script_figures,
    token_figures,
    turn_figures,
)
from tuninglab.data.reading.audited_pictures import (
    WRONG,
    digests_of,
    picture_figures,
    shared_pictures,
    wrong_pictures,
)
from tuninglab.data.reading.building import MOST_TOLD
from tuninglab.data.reading.lengths import lengths_of, too_long
from tuninglab.data.reading.opening import Wishes, limited, open_stored, settle
from tuninglab.data.reading.splits import joined
from tuninglab.data.reading.store import StoredSamples, table_of
from tuninglab.data.sample import Sample, plain_text
from tuninglab.data.sources import Source
from tuninglab.disk import write_whole
from tuninglab.errors import DataError
from tuninglab.progress import working
from tuninglab.reporting.data_command import fitting_command
from tuninglab.reporting.data_page import page
from tuninglab.reporting.data_reader import Reader, open_reader
from tuninglab.reporting.data_shown import picture_name, shown, some_of
from tuninglab.reporting.data_text import text_of

MOST_ANSWERS = 20
MOST_EXAMPLES = 5
# Records on a page where --show does not say how many.
ON_A_PAGE = 12


class Audited(NamedTuple):
    """What came of a look at data.

    Args:
        figures: all of it, as --json prints it.
        text: for people.
        error: what finetune would stop with; None where it would go on.
    """

    figures: dict[str, Any]
    text: str
    error: DataError | None


@dataclass
class Part:
    """One of the sets that are looked at.

    Args:
        stored: its usable samples.
        about: what was found as it was read.
        samples: those that a training takes.
        fits: which of these the model can read (N,).
    """

    part: DataPart
    stored: StoredSamples
    about: dict[str, Any]
    samples: Source
    fits: np.ndarray

    @property
    def records(self) -> np.ndarray:
        """The record that each sample came from (N,)."""
        table = table_of(self.samples)
        return np.zeros(0, np.int64) if table is None else table.records

    @property
    def usable(self) -> int:
        """Records of which a sample can be used."""
        return len(np.unique(self.records[self.fits]))

    @property
    def bad(self) -> int:
        """Records that are wrong, or of which a sample is too long."""
        found = self.about["bad"] + len(np.unique(self.records[~self.fits]))
        # A record may be both.
        return min(found, self.about["records"] - self.usable)


def look_at_data(config: DataConfig) -> Audited:
    """Read the data as finetune would, and count what is in it.

    Raises:
        UserError: a set, or the model's tokenizer, cannot be read at all.
        WorkError: the page cannot be written.
    """
    train = [read_part(part, config) for part in parts_of(config.data) or []]
    val = [read_part(part, config) for part in parts_of(config.val_data, "val_data") or []]
    reader = open_reader(config.model, config.max_tokens, config.prompt)
    tallies = [tally_of(parts, reader) for parts in (train, val)]
    figures = set_figures(train, config) | sample_figures(train, tallies[0], reader)
    figures["validation"] = compared(train, val, *tallies) if val else None
    problems = [told for part in [*train, *val] for told in problems_of(part, reader)]
    figures["problems"] = [{"origin": origin, "text": text} for origin, text in problems]
    figures["command"] = fitting_command(config, figures, [p.samples for p in train], reader)
    usual = 0 if config.html is None else ON_A_PAGE
    chosen = some_of(
        [part.samples for part in train], usual if config.show is None else config.show
    )
    records = [shown(sample, reader.tokenizer, reader.prompt) for sample in chosen]
    if config.html is not None:
        write_whole(Path(config.html), page(figures, records))
    printed = records if config.show else []
    figures["shown"] = [record.json for record in printed]
    return Audited(figures, text_of(figures, printed), error_of(config, [*train, *val], problems))


def read_part(part: DataPart, config: DataConfig) -> Part:
    """Read a set as finetune would; all of its samples are taken to be short enough so far."""
    stored, about = open_stored(part, Wishes.of(config))
    samples = limited(stored, part, config.seed)
    return Part(part, stored, about, samples, np.ones(len(samples), bool))


def tally_of(parts: Sequence[Part], reader: Reader) -> Tally:
    """Count all samples of some sets, and find those that are too long.

    Raises:
        UserError: the prompt has no place for something in a record.
    """
    tally = Tally()
    for part in parts:
        counted = lengths_of(part.samples, reader.counted, reader.counting_key)
        if reader.longest is not None and len(counted):
            part.fits = counted[:, 0] <= reader.longest
        rows = zip(part.samples, digests_of(part.samples), counted.tolist(), strict=True)
        with working("reading the records", len(part.samples)) as note:
            for done, (sample, digests, counts) in enumerate(rows, 1):
                tally.take(sample, digests, *counts)
                note(done)
    return tally


def set_figures(parts: Sequence[Part], config: DataConfig) -> dict[str, Any]:
    """What was found of each set, and how much of each an epoch takes."""
    formats, notes = Counter(), Counter()
    for part in parts:
        formats.update(part.about["formats"])
        notes.update(part.about["notes"])
    mixture = None
    if all(len(part.samples) for part in parts):
        whole = joined([p.part for p in parts], [p.samples for p in parts], config.mix)
        mixture = whole if isinstance(whole, Joined) else None
    sets = []
    for number, part in enumerate(parts):
        taken = len(part.samples)
        rows = mixture.counts[number] if mixture and mixture.counts else taken
        every = sum(mixture.counts) if mixture and mixture.counts else taken
        found = {"path": part.part.path, "what": part.about["what"], "bad": part.bad}
        found |= {"records": part.about["records"], "usable": part.usable, "samples": taken}
        share = {"rows": rows, "share": rows / every if every else 0.0}
        sets.append(found | share | {"passes": rows / taken if taken else 0.0})
    return {
        "format": ", ".join(name for name, _ in formats.most_common()) or "none",
        "records": sum(part.about["records"] for part in parts),
        "usable": sum(part.usable for part in parts),
        "bad": sum(part.bad for part in parts),
        "notes": [{"text": text, "records": count} for text, count in notes.items()],
        "sets": sets,
    }


def sample_figures(parts: Sequence[Part], tally: Tally, reader: Reader) -> dict[str, Any]:
    """What the samples of the training data are made of."""
    sources = [part.samples for part in parts]
    whole = Joined([part.part.path for part in parts], sources)
    wrong = Counter()
    for part in parts:
        wrong += wrong_pictures(part.stored)
    fits = np.concatenate([part.fits for part in parts])
    again, other = repeated(tally.contents), contradicting(tally)
    tokens = token_figures(tally) | {"tokenizer": reader.name, "most": reader.longest}
    if len(whole):
        tokens["longest_origin"] = whole[int(np.argmax(tally.tokens))].origin
    blind = blind_figures(tally)
    return {
        "samples": len(whole),
        "example": example_of(whole[0]) if len(whole) else None,
        "pictures": picture_figures(sources) | {kind: wrong[kind] for kind in WRONG},
        "turns": turn_figures(tally),
        "tokens": tokens | {"overlong": int((~fits).sum())},
        "answers": frequent_figures(tally.answers, MOST_ANSWERS),
        "questions": frequent_figures(tally.questions, MOST_ANSWERS),
        "different": {
            "answers": len(tally.answers.counts),
            "questions": len(tally.questions.counts),
        },
        "blind": blind,
        "duplicates": len(again),
        "duplicate_examples": _origins(whole, again),
        "contradictions": len(other),
        "contradiction_examples": _origins(whole, other),
        "scripts": script_figures(tally),
    }


def example_of(sample: Sample) -> dict[str, Any]:
    """A sample in short: where it stands, its first question and answer, its pictures."""
    texts = [plain_text(message).strip() for message in sample.messages]
    first = 1 if sample.messages[0]["role"] == "system" else 0
    names = [picture_name(picture) for picture in sample.images]
    said = {"question": texts[first][:SHOWN_LETTERS], "answer": texts[first + 1][:SHOWN_LETTERS]}
    return {"origin": sample.origin, **said, "pictures": names[:MOST_EXAMPLES]}


def compared(
    train: Sequence[Part], val: Sequence[Part], tally: Tally, held: Tally
) -> dict[str, Any]:
    """What validation data is, and what of it is in the training data too."""
    known = set(tally.contents)
    longest = max(held.tokens, default=0)
    return {
        "records": sum(part.about["records"] for part in val),
        "usable": sum(part.usable for part in val),
        "bad": sum(part.bad for part in val),
        "samples": len(held.tokens),
        "longest": longest,
        "shared": shared_pictures([p.samples for p in train], [p.samples for p in val]),
        "duplicates": sum(content in known for content in held.contents),
        "guessed": guessed(tally, held),
    }


def problems_of(part: Part, reader: Reader) -> list[tuple[str, str]]:
    """What is wrong with the records of a set: where, and what; at most `MOST_TOLD` of a kind."""
    told = []
    for line in part.stored.problems:
        # Names of files may hold colons too.
        label = part.stored.label if line.startswith(part.stored.label) else ""
        origin, _, text = line.removeprefix(label).partition(": ")
        told.append((label + origin, text))
    tokens, longest = reader.tokens, reader.longest or 0
    for number in np.flatnonzero(~part.fits)[:MOST_TOLD].tolist():
        sample = part.samples[number]
        line = too_long(sample.origin, tokens(sample), longest)
        told.append((sample.origin, line.removeprefix(f"{sample.origin}: ")))
    return told


def error_of(
    config: DataConfig, parts: Sequence[Part], problems: Sequence[tuple[str, str]]
) -> DataError | None:
    """What finetune would stop with, for the same data."""
    lines = [f"{origin}: {text}" for origin, text in problems]
    empty = next((part for part in parts if not part.usable), None)
    name = (empty or parts[0]).stored.label
    if empty and not lines:
        lines = [f"{name}: none of its records gives anything to learn"]
    total = sum(part.about["records"] for part in parts)
    bad = total if empty else sum(part.bad for part in parts)
    try:
        settle(name, lines, config.skip_bad_records, bad, total)
    except DataError as error:
        return error
    return None


def _origins(whole: Joined, places: np.ndarray) -> list[str]:
    return [whole[place].origin for place in places[:MOST_EXAMPLES].tolist()]

"""What a training would read and learn of samples, counted while they pass once."""

import json
from array import array
from collections import Counter
from collections.abc import Hashable, Sequence
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import numpy as np

from tuninglab.data.reading.scripts import scripts_of
from tuninglab.data.sample import Sample, plain_text

Thing = TypeVar("Thing", bound=Hashable)

# Different answers that are counted apart; of more, the rarer ones are forgotten.
MOST_THINGS = 100_000
# Letters of an answer that are kept to be shown.
SHOWN_LETTERS = 200
# Answers to rarer questions tell little about what is guessed without looking.
ASKED_OFTEN = 5
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}


class Frequent(Generic[Thing]):
    """How often which thing occurs, in bounded memory.

    Of more than `most` different ones the rarer half is forgotten; from then on, the counts are
    not `exact` but what there is at least.
    """

    def __init__(self, most: int = MOST_THINGS):
        self.most, self.total, self.exact = most, 0, True
        self.counts: Counter[Thing] = Counter()

    def add(self, thing: Thing) -> None:
        """Count one."""
        self.total += 1
        self.counts[thing] += 1
        if len(self.counts) > self.most:
            self.counts = Counter(dict(self.counts.most_common(self.most // 2)))
            self.exact = False

    def share(self, count: int) -> float:
        """Of all that was counted."""
        return count / self.total if self.total else 0.0


class Tally:
    """Figures of samples that are taken one after another; some 30 bytes are kept of each.

    Attributes:
        tokens: that are read, of each sample.
        trained: tokens that are learned, of each sample.
        contents: a number for all that a sample says, equal where texts and pictures are.
        prompts: the same without its answers; with them where nothing is asked.
        turns: how many samples have how many answers.
        systems: samples with a system message.
        answers: as (beginning, number of the whole text).
        questions: the same.
        pairs: questions with their answers, both as numbers.
        unknown: tokens for what the tokenizer does not know.
    """

    def __init__(self):
        self.tokens, self.trained = array("i"), array("i")
        self.contents, self.prompts = array("Q"), array("Q")
        self.turns: Counter[int] = Counter()
        self.systems = self.unknown = 0
        self.answers: Frequent[tuple[str, int]] = Frequent()
        self.questions: Frequent[tuple[str, int]] = Frequent()
        self.pairs: Frequent[tuple[int, int]] = Frequent(2 * MOST_THINGS)
        self.characters: Counter[str] = Counter()

    def take(
        self, sample: Sample, pictures: Sequence[bytes], tokens: int, trained: int, unknown: int
    ) -> None:
        """Count a sample.

        Args:
            sample: the next.
            pictures: digests of its pictures.
            tokens: that it has.
            trained: how many of these are learned.
            unknown: how many the tokenizer does not know.
        """
        self.tokens.append(tokens)
        self.trained.append(trained)
        self.unknown += unknown
        messages = sample.messages
        asked = [message for message in messages if message["role"] != "assistant"]
        shown = b"".join(pictures)
        self.contents.append(_number(json.dumps(messages), shown))
        # A picture that nothing is asked about may have many captions, none of them wrong.
        captioned = not any(map(plain_text, asked))
        self.prompts.append(self.contents[-1] if captioned else _number(json.dumps(asked), shown))
        self.systems += messages[0]["role"] == "system"
        said = [message for message in messages if message["role"] != "system"]
        texts = [plain_text(message).strip() for message in said]
        self.turns[len(texts) // 2] += 1
        for question, answer in zip(texts[::2], texts[1::2], strict=True):
            keys = _key(question), _key(answer)
            self.questions.add(keys[0])
            self.answers.add(keys[1])
            self.pairs.add((keys[0][1], keys[1][1]))
        for message in messages:
            self.characters.update(plain_text(message))

    def guesses(self) -> dict[int, int]:
        """The most frequent answer to each question, by numbers; of equal ones the first."""
        best: dict[int, tuple[int, int]] = {}
        for (question, answer), count in self.pairs.counts.items():
            if count > best.get(question, (0, 0))[0]:
                best[question] = count, answer
        return {question: answer for question, (_, answer) in best.items()}

    def usual(self) -> int | None:
        """The number of the most frequent answer; None if there is none."""
        return next((key[1] for key, _ in self.answers.counts.most_common(1)), None)


def token_figures(tally: Tally) -> dict[str, Any]:
    """Tokens of all samples together, and how long these are."""
    tokens = np.frombuffer(tally.tokens, np.int32)
    total, trained = int(tokens.sum(dtype=np.int64)), sum(tally.trained)
    figures: dict[str, Any] = {
        "total": total,
        "trained": trained,
        "share": trained / total if total else 0.0,
        "unknown": tally.unknown,
        "longest": int(tokens.max(initial=0)),
    }
    for name, share in QUANTILES.items():
        # The least number that so large a share of the samples does not exceed.
        at = np.quantile(tokens, share, method="inverted_cdf") if total else 0
        figures[name] = int(at)
    return figures | {"histogram": by_powers(tokens)}


def by_powers(numbers: np.ndarray) -> list[dict[str, int]]:
    """How many of some whole numbers above 0 lie from one power of two to the next."""
    counts = np.bincount(np.frexp(numbers)[1]).tolist() if len(numbers) else []
    filled = [bits for bits, count in enumerate(counts) if count]
    return [
        {"from": 2 ** (bits - 1), "to": 2**bits - 1, "samples": counts[bits]}
        for bits in range(min(filled, default=0), len(counts))
    ]


def turn_figures(tally: Tally) -> dict[str, Any]:
    """How many samples have how many answers, and how many a system message."""
    answers = [{"answers": n, "samples": count} for n, count in sorted(tally.turns.items())]
    return {"answers": answers, "system": tally.systems}


def frequent_figures(found: Frequent[tuple[str, int]], most: int) -> list[dict[str, Any]]:
    """The most frequent texts with their share of all."""
    top = found.counts.most_common(most)
    return [{"text": key[0], "count": n, "share": found.share(n)} for key, n in top]


def blind_figures(tally: Tally) -> dict[str, Any]:
    """Shares of the answers that are right for who knows how frequent they are, and sees nothing.

    `most_frequent`: by always the same answer. `by_question`: by the most frequent answer to a
    question that is asked often, to the others that of all.
    """
    usual = tally.usual()
    best: Counter[int] = Counter()
    asked: Counter[int] = Counter()
    usually: Counter[int] = Counter()
    for (question, answer), count in tally.pairs.counts.items():
        asked[question] += count
        best[question] = max(best[question], count)
        usually[question] += count if answer == usual else 0
    right = sum(
        best[question] if count >= ASKED_OFTEN else usually[question]
        for question, count in asked.items()
    )
    top = max(tally.answers.counts.values(), default=0)
    return {
        "most_frequent": tally.answers.share(top),
        "by_question": tally.pairs.share(right),
        "exact": tally.answers.exact and tally.pairs.exact,
    }


def guessed(train: Tally, val: Tally) -> float:
    """The share of validation answers that training data gives most often to their question."""
    guesses, usual = train.guesses(), train.usual()
    right = sum(
        count
        for (question, answer), count in val.pairs.counts.items()
        if guesses.get(question, usual) == answer
    )
    return val.pairs.share(right)


def repeated(contents: Sequence[int]) -> np.ndarray:
    """Places of the samples that say what an earlier one says."""
    numbers = np.asarray(contents, np.uint64)
    first = np.unique(numbers, return_index=True)[1]
    again = np.ones(len(numbers), bool)
    again[first] = False
    return np.flatnonzero(again)


def contradicting(tally: Tally) -> np.ndarray:
    """Places of the samples that answer what an earlier one is asked, in another way."""
    prompts = np.frombuffer(tally.prompts, np.uint64)
    contents = np.frombuffer(tally.contents, np.uint64)
    _, first, which = np.unique(prompts, return_index=True, return_inverse=True)
    return np.flatnonzero(contents != contents[first][which])


def script_figures(tally: Tally) -> list[dict[str, Any]]:
    """Shares of all letters by script."""
    found = scripts_of(tally.characters)
    total = sum(count for _, count in found)
    return [{"text": name, "share": count / total} for name, count in found]


def _key(text: str) -> tuple[str, int]:
    shown = text if len(text) <= SHOWN_LETTERS else f"{text[: SHOWN_LETTERS - 1]}…"
    return shown, _number(text)


def _number(text: str, more: bytes = b"") -> int:
    """64 bits that stand for a text: two of ten million are alike once in half a million sets."""
    digest = blake2b(more, digest_size=8)
    digest.update(text.encode())
    return int.from_bytes(digest.digest())

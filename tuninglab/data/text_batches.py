"""Text pairs to batches: ids of source and target, padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from tuninglab.data.batches import Batch, padded_texts
from tuninglab.data.prompt import IGNORED
from tuninglab.data.sample import Pair
from tuninglab.data.sampler import MaskedRow
from tuninglab.data.tokens import text_ids


class PairDataset(Dataset[dict[str, Any]]):
    """Text pairs as the model's inputs, one row at a time.

    Args:
        pairs: may be lazy, an item is fetched anew at each access.
        tokenizer: of a T5, whose sources and targets end in its end token.
    """

    def __init__(self, pairs: Sequence[Pair], tokenizer: Any):
        self.pairs = pairs
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`: input_ids of the source and labels of the target (lists)."""
        pair = self.pairs[int(index)]
        labels = ended_ids(pair.target, self.tokenizer)
        if isinstance(index, MaskedRow):
            labels = [IGNORED] * len(labels)
        input_ids = ended_ids(pair.source, self.tokenizer)
        return {"input_ids": input_ids, "labels": labels, "sample_id": pair.origin}


def ended_ids(text: str, tokenizer: Any) -> list[int]:
    """The ids of a text and the end token; an end token typed in the text is text."""
    return [*text_ids(text, tokenizer), tokenizer.eos_token_id]


def pair_tokens(pair: Pair, tokenizer: Any) -> int:
    """The tokens of the longer one of a pair's two texts."""
    return max(len(ended_ids(text, tokenizer)) for text in (pair.source, pair.target))


@dataclass
class PairCollator:
    """Rows to a batch, sources and targets each padded to the longest.

    Args:
        pad_token_id: fills `input_ids`; masked out in `attention_mask` and `labels`.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """A batch of input_ids, attention_mask (B, S) and labels (B, T)."""
        # The decoder needs no mask: what it pads comes after all labels. It reads the target.
        inputs = padded_texts(rows, self.pad_token_id)
        return Batch.of(rows, inputs, read=("input_ids", "labels"))

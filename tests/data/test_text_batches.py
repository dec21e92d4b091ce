import pytest
import torch
from transformers import ByT5Tokenizer

from tests.data.conftest import byte_level, unigram, wrapped
from tuninglab.data.sample import Pair
from tuninglab.data.sampler import MaskedRow
from tuninglab.data.text_batches import PairCollator, PairDataset, pair_tokens

TOKENIZER = ByT5Tokenizer(extra_ids=0)
PAIRS = [Pair("ab", "c", "first"), Pair("d", "efg", "second")]
END = TOKENIZER.eos_token_id


def ids(text):
    """ByT5's rule: a byte and 3, then the end token."""
    return [byte + 3 for byte in text.encode()] + [END]


def test_a_row_has_source_and_target_with_their_end():
    row = PairDataset(PAIRS, TOKENIZER)[1]
    assert row == {"input_ids": ids("d"), "labels": ids("efg"), "sample_id": "second"}
    assert pair_tokens(PAIRS[1], TOKENIZER) == 4


@pytest.mark.parametrize("make", [unigram, byte_level, None])
def test_special_tokens_in_a_text_are_text(make):
    """But both texts end in the end token, as with the tokenizer's own rule for a T5."""
    tokenizer = TOKENIZER if make is None else wrapped(make(), True, False)
    special = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    typed = f"a{tokenizer.eos_token}b{tokenizer.pad_token}c"
    assert special < set(tokenizer(typed)["input_ids"])
    row = PairDataset([Pair(typed, f"d{typed}"), Pair("a b", "red")], tokenizer)
    for ids in (row[0]["input_ids"], row[0]["labels"]):
        assert special.isdisjoint(ids[:-1]) and ids[-1] == tokenizer.eos_token_id
        assert typed in tokenizer.decode(ids[:-1])
    plain = tokenizer("red", add_special_tokens=False)["input_ids"]
    assert row[1]["labels"] == [*plain, tokenizer.eos_token_id]
    assert pair_tokens(Pair(typed, "c"), tokenizer) == len(row[0]["input_ids"])


def test_a_masked_row_has_no_labels():
    assert PairDataset(PAIRS, TOKENIZER)[MaskedRow(0)]["labels"] == [-100, -100]


def test_source_and_target_are_padded_apart():
    dataset = PairDataset(PAIRS, TOKENIZER)
    batch = PairCollator(TOKENIZER.pad_token_id)([dataset[0], dataset[1]])
    expected = {
        "input_ids": [ids("ab"), [*ids("d"), 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[*ids("c"), -100, -100], ids("efg")],
    }
    assert batch.sample_ids == ["first", "second"]
    assert {name: tensor.tolist() for name, tensor in batch.inputs.items()} == expected
    assert all(tensor.dtype == torch.long for tensor in batch.inputs.values())
    # The decoder's text is read as well as the encoder's.
    assert (batch.tokens, batch.answer_tokens, batch.samples) == (5 + 6, 6, 2)
    batch = PairCollator(TOKENIZER.pad_token_id)([dataset[1], dataset[MaskedRow(0)]])
    assert (batch.tokens, batch.answer_tokens, batch.samples) == (2 + 4, 4, 1)

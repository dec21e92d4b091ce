"""Streamed text against the whole answer, for tokens of any kind in any order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tuninglab.data.prompt import decode_answer
from tuninglab.models.build import add_flamingo_tokens
from tuninglab.serving.streaming import AnswerStreamer


def byte_level():
    """GPT-2's kind: a token is any piece of UTF-8."""
    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return finished(core)


def byte_fallback():
    """LLaMA's kind: words with their blank, and bytes for characters it has no token for."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "a", "▁a", "▁star", ".", "\n", "是", "�"]
    table = {word: index for index, word in enumerate(words)}
    core = Tokenizer(models.BPE(table, [], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return finished(core, unk_token="<unk>")


def finished(core, **special):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", **special
    )
    add_flamingo_tokens(tokenizer)
    return tokenizer


TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}


def streamed(tokenizer, ids):
    """What a streamer shows after each token, and after the end."""
    pieces, after = [], []
    streamer = AnswerStreamer(tokenizer, pieces.append)
    streamer.put(torch.tensor([[5, 6, 7]]))
    for index in ids:
        streamer.put(torch.tensor([index]))
        after.append("".join(pieces))
    streamer.end()
    assert "" not in pieces
    return [*after, "".join(pieces)]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_the_pieces_are_the_answer_whatever_the_tokens(kind, data):
    tokenizer = TOKENIZERS[kind]
    # Bytes and special tokens weigh more: runs of them are where text is not yet settled.
    index = st.one_of(st.integers(0, len(tokenizer) - 1), st.sampled_from([0, 3, 131, 188]))
    ids = data.draw(st.lists(index, max_size=12))
    assert streamed(tokenizer, ids)[-1] == decode_answer(ids, tokenizer)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None)
@given(text=st.text(" \na.是é🦩\u3000", max_size=8))
def test_text_never_shows_half_a_character(kind, text):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [index for index in ids if index != tokenizer.unk_token_id]
    shown = streamed(tokenizer, [*ids, tokenizer.convert_tokens_to_ids("<|endofchunk|>"), *ids])
    assert shown[-1] == decode_answer(ids, tokenizer)
    assert all(shown[-1].startswith(part) and "�" not in part for part in shown)


def test_text_comes_as_soon_as_it_is_known():
    fallback = TOKENIZERS["byte_fallback"]
    words = fallback.convert_tokens_to_ids(["▁a", "▁star", "<0xE6>", "<0x98>", "<0xAF>", "是"])
    assert streamed(fallback, words) == ["a", *["a star"] * 4, "a star是是", "a star是是"]
    level = TOKENIZERS["byte_level"]
    ids = level("a 是 \n")["input_ids"]
    # A blank at the end is none of the answer, unless something else than blanks follows.
    assert streamed(level, ids) == ["a", "a", "a", "a", *["a 是"] * 4]

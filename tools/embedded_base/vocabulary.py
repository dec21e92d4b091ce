"""Stage 1: a byte-level BPE tokenizer of 4,096 tokens and three, trained on what is read."""

import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tools.embedded_base.captions import caption, statements
from tools.embedded_base.english import English
from tools.embedded_base.strokes import sample_varied_digits
from tools.embedded_base.text import training_text
from tools.embedded_base.varied_drawings import sample_varied_drawings
from tuninglab.embedded.scenes import sample_scene

SIZE_TOKENS = 4096


def corpus(english: English, documents: int = 120_000):
    """Real English most of all, our own texts, and captions."""
    rng = random.Random(0)
    for k in range(documents):
        if k % 6 < 4:
            yield english.draw(rng)
        elif k % 6 == 4:
            yield " ".join(text for text, _ in training_text(rng))
        else:
            draw = rng.choice((sample_scene, sample_varied_digits, sample_varied_drawings))
            picture = draw(rng)
            yield " ".join([caption(picture), *(f"{a} {b}" for a, b in statements(picture, rng))])


def train_tokenizer(english: English) -> PreTrainedTokenizerFast:
    """The tokenizer; `<|endofchunk|>`, `<image>` and `<PAD>` come last, as in OpenFlamingo."""
    bpe = Tokenizer(models.BPE())
    # A text starts with a space of its own, as LLaMA's does: "blue" alone and " blue" in a sentence
    # are one token.
    bpe.normalizer = normalizers.Prepend(" ")
    words = Regex(
        r" ?\d| ?[^\s\d\p{P}]+| ?\p{P}+|\s+"
    )  # digits one by one, so that 718 is read as 7 1 8
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE_TOKENS,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(english), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>", "<image>"]})
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    return tokenizer


def load_tokenizer(out: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of an earlier stage."""
    return PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")

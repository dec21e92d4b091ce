"""Stage 1: a byte-level BPE tokenizer of about 1000 tokens, trained on the pre-training text."""

import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tools.embedded_base.captions import caption, statements
from tools.embedded_base.strokes import sample_varied_digits
from tools.embedded_base.text import training_text
from tuninglab.embedded.scenes import sample_scene

SIZE_TOKENS = 1024  # an upper bound: the small domain saturates below it


def corpus(documents: int = 20_000):
    """Texts and captions in equal parts."""
    rng = random.Random(0)
    for k in range(documents):
        if k % 2:
            yield " ".join(text for text, _ in training_text(rng))
        else:
            picture = sample_scene(rng) if rng.random() < 0.6 else sample_varied_digits(rng)
            yield " ".join([caption(picture), *(f"{a} {b}" for a, b in statements(picture, rng))])


def train_tokenizer() -> PreTrainedTokenizerFast:
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
    bpe.train_from_iterator(corpus(), trainer)
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

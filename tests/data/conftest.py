from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from tuninglab.data.prompt_formats import TUNINGLAB

CORPUS = [
    "What colour is the ball? red blue ### Instruction: ### Response: \n\n <s>a</s> 1 | /"
] * 9


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>"], **options)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def llama_like() -> Tokenizer:
    """BPE over SentencePiece's marks, with a space of its own before each text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), strip])
    alphabet = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    """T5's kind, with a normalizer that turns full-width brackets into ASCII ones."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        unk_token="<unk>",
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def wrapped(backend: Tokenizer, special: bool, bos: bool) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        unk_token="<unk>" if "<unk>" in backend.get_vocab() else None,
    )
    tokenizer.add_tokens(["<|endofchunk|>", "<image>"], special_tokens=special)
    tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    return tokenizer


TOKENIZERS = {
    "byte-level": (byte_level, True, True),
    "byte-level-no-bos": (byte_level, True, False),
    "byte-level-ordinary-marks": (byte_level, False, True),
    "llama-like": (llama_like, True, True),
    "llama-like-ordinary-marks": (llama_like, False, True),
    "unigram": (unigram, True, True),
}


@pytest.fixture(scope="session", params=TOKENIZERS)
def tokenizer(request):
    make, special, bos = TOKENIZERS[request.param]
    return wrapped(make(), special, bos)


@pytest.fixture(scope="session")
def processor():
    """Stands for FlamingoProcessor: the attributes that data/ uses."""
    size = {"height": 8, "width": 8}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=size)
    tokenizer = wrapped(byte_level(), True, True)
    return SimpleNamespace(tokenizer=tokenizer, image_processor=image_processor, prompt=TUNINGLAB)

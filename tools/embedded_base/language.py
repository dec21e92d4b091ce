"""Stage 2: a small LLaMA, trained on text alone."""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.embedded_base.earlier import take_language
from tools.embedded_base.english import English
from tools.embedded_base.schedule import Progress, learning_rate, make_optimizer, optimize
from tools.embedded_base.text import passage, training_text
from tools.embedded_base.vocabulary import load_tokenizer

BATCH, BLOCK_TOKENS = 24, 96
ENGLISH_SHARE = 0.6  # of documents


def new_language_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """LLaMA's architecture: 128 wide, 6 layers, untied; with the three Flamingo tokens."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encode_pieces(
    pieces: list[tuple[str, float]], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[float]]:
    """Pieces tokenized apart, their ids joined: (ids, loss weight of each)."""
    ids, weights = [], []
    for text, weight in pieces:
        piece = tokenizer(text, add_special_tokens=False).input_ids
        ids += piece
        weights += [weight] * len(piece)
    return ids, weights


def blocks(
    tokenizer: PreTrainedTokenizerFast, english: English, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of packed documents: ids (B, T) and loss weights (B, T)."""
    ids: list[int] = []
    weights: list[float] = []
    while True:
        while len(ids) < BATCH * BLOCK_TOKENS:
            real = rng.random() < ENGLISH_SHARE
            pieces = [(english.draw(rng), 1.0)] if real else training_text(rng)
            more, weight = encode_pieces(pieces, tokenizer)
            ids += [tokenizer.bos_token_id, *more, tokenizer.eos_token_id]
            weights += [0.0, *weight, 0.1]
        size = BATCH * BLOCK_TOKENS
        yield (
            torch.tensor(ids[:size]).view(BATCH, BLOCK_TOKENS),
            torch.tensor(weights[:size]).view(BATCH, BLOCK_TOKENS),
        )
        ids, weights = ids[size:], weights[size:]


def weighted_loss(
    model: torch.nn.Module, ids: torch.Tensor, weights: torch.Tensor, **inputs: torch.Tensor
) -> torch.Tensor:
    """Next-token loss, averaged with the weight of the predicted token; ids, weights (B, T).

    Logits are computed where a token counts only: they are a third of the work.
    """
    weight, following = F.pad(weights[:, 1:], (0, 1)), F.pad(ids[:, 1:], (0, 1))
    counts = weight > 0
    logits = model(input_ids=ids, logits_to_keep=counts, **inputs).logits.flatten(0, -2)  # (N, V)
    loss = F.cross_entropy(logits, following[counts], reduction="none")
    return (loss * weight[counts]).sum() / weight.sum()


@torch.no_grad()
def reading_exact_match(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 200
) -> float:
    """Share of questions on unseen passages answered exactly, greedily, up to the dialogue's end.

    The end of the dialogue is part of the answer.
    """
    rng, right = random.Random(99), 0
    for _ in range(count):
        text, asked = passage(rng)
        question, answer = asked[0]
        start = (text, "\n\n", "### Instruction:\n", question, "\n\n", "### Response:\n")
        pieces = [(piece, 0.0) for piece in start]
        ids, weights = encode_pieces([*pieces, (answer, 1.0), ("<|endofchunk|>", 1.0)], tokenizer)
        ids, weights = [tokenizer.bos_token_id, *ids], [0.0, *weights]
        guess = model(torch.tensor([ids])).logits[0, :-1].argmax(-1).tolist()
        right += all(
            g == t for g, t, w in zip(guess, ids[1:], weights[1:], strict=True) if w == 1.0
        )
    return right / count


@torch.no_grad()
def english_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, english: English, count: int = 300
) -> float:
    """Nats a token on documents of real text (drawn anew, from the same sources)."""
    rng, losses, tokens = random.Random(98), 0.0, 0
    for _ in range(count):
        ids = [tokenizer.bos_token_id, *tokenizer(english.draw(rng)).input_ids]
        losses += model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() * (
            len(ids) - 1
        )
        tokens += len(ids) - 1
    return round(losses / tokens, 3)


def train_language_model(
    out: Path, english: English, steps: int, earlier: Path | None
) -> dict[str, float]:
    """Train and save to `out/lm`, from nothing or from an earlier base; returns what it reached."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(out)
    model = new_language_model(tokenizer)
    if earlier:
        take_language(model, tokenizer, earlier)
    optimizer = make_optimizer([(model, 1.0)])
    progress, batches = Progress("lm", steps), blocks(tokenizer, english, random.Random(1))
    for step in range(steps):
        ids, weights = next(batches)
        loss = weighted_loss(model, ids, weights)
        optimize(optimizer, loss, learning_rate(step, steps, 2e-3))
        progress(step, loss=loss.item())
    model.eval().save_pretrained(out / "lm")
    return {
        "reading_exact_match": reading_exact_match(model, tokenizer),
        "english_loss": english_loss(model, tokenizer, english),
    }

"""A small T5 with the bytes of UTF-8 as its tokens, trained from nothing on the tasks."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import ByT5Tokenizer, T5Config

from tools.embedded_base.schedule import Progress, learning_rate, make_optimizer, optimize
from tools.embedded_text_base.tasks import TASKS, draw
from tuninglab.models.text_to_text import TextToText

BATCH, PEAK_RATE = 32, 1.5e-3
SORTED_BATCHES = 4
CHECKED_PAIRS = 60  # of each task


def new_model(tokenizer: ByT5Tokenizer) -> TextToText:
    """T5 v1.1's architecture with a head of its own: 128 wide, 2 + 2 layers, 4 heads."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model = TextToText(config)
    # T5's own start has logits of size sqrt(d_model) here, and a loss of 33 instead of 6.
    model.lm_head.weight.data *= config.d_model**-0.5
    return model


def batch_of(pairs: Sequence[tuple[str, str]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Pairs as a batch: input_ids, attention_mask (B, S) and labels (B, T), -100 at padding."""
    sources = tokenizer([source for source, _ in pairs], padding=True, return_tensors="pt")
    targets = tokenizer([target for _, target in pairs], padding=True, return_tensors="pt")
    labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
    return {**sources, "labels": labels}


def batches(tokenizer: Any, rng: random.Random) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches of pairs whose sources are about as long as each other.

    Batches drawn at random are padding by half.
    """
    while True:
        pairs = sorted((draw(rng) for _ in range(BATCH * SORTED_BATCHES)), key=_source_length)
        starts = list(range(0, len(pairs), BATCH))
        rng.shuffle(starts)
        for start in starts:
            yield batch_of(pairs[start : start + BATCH], tokenizer)


def _source_length(pair: tuple[str, str]) -> int:
    return len(pair[0])


@torch.no_grad()
def exact_matches(model: TextToText, tokenizer: Any) -> dict[str, float]:
    """By task the share of new pairs whose target is generated exactly."""
    rng, right = random.Random(7), defaultdict(list)
    for task in dict.fromkeys(TASKS):
        pairs = [task(rng) for _ in range(CHECKED_PAIRS)]
        batch = batch_of(pairs, tokenizer)
        del batch["labels"]
        ids = model.generate(**batch, max_new_tokens=40, do_sample=False)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        right[task.__name__] = [t == target for t, (_, target) in zip(texts, pairs, strict=True)]
    return {name: round(sum(hits) / len(hits), 3) for name, hits in right.items()}


def train_base(out: Path, steps: int) -> dict[str, float]:
    """Train from nothing and save in fp16, with the tokenizer, to `out`; returns what it reached.

    The figures are those of the saved weights.
    """
    torch.manual_seed(0)
    tokenizer = ByT5Tokenizer(extra_ids=0)
    model = new_model(tokenizer)
    optimizer = make_optimizer([(model, 1.0)])
    progress, data = Progress("text base", steps), batches(tokenizer, random.Random(1))
    for step in range(steps):
        loss = model(**next(data), labels_only_logits=True).loss
        optimize(optimizer, loss, learning_rate(step, steps, PEAK_RATE))
        progress(step, loss=loss.item())
    model.eval().half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    model.float()
    return {"parameters": model.num_parameters(), **exact_matches(model, tokenizer)}

"""Texts that a text-to-text model writes."""

from collections.abc import Sequence
from typing import Any

import torch

from tuninglab.data.batches import padded_texts
from tuninglab.data.text_batches import ended_ids
from tuninglab.evaluation.answers import evaluation_mode
from tuninglab.progress import working


@torch.inference_mode()
def generate_texts(
    model: Any,
    tokenizer: Any,
    sources: Sequence[str],
    batch_size: int = 128,
    max_new_tokens: int = 64,
) -> list[str]:
    """Greedy targets of sources, as plain text.

    Args:
        model: a T5, or one wrapped by PEFT; its mode (train or eval) is left as it was.
        tokenizer: its tokenizer.
        sources: what it reads.
        batch_size: texts generated together.
        max_new_tokens: longer texts are cut.
    """
    device = next(model.parameters()).device
    texts: list[str] = []
    with evaluation_mode(model), working("writing texts", len(sources)) as note:
        for start in range(0, len(sources), batch_size):
            some = sources[start : start + batch_size]
            rows = [{"input_ids": ended_ids(text, tokenizer)} for text in some]
            batch = padded_texts(rows, tokenizer.pad_token_id)
            inputs = {name: value.to(device) for name, value in batch.items()}
            ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
            note(len(texts))
    return [text.strip() for text in texts]

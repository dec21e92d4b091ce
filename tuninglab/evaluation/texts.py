"""Texts that a text-to-text model writes."""

from collections.abc import Sequence
from typing import Any

import torch

from tuninglab.data.batches import padded
from tuninglab.data.text_batches import text_ids
from tuninglab.evaluation.answers import evaluation_mode


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
    with evaluation_mode(model):
        for start in range(0, len(sources), batch_size):
            rows = [text_ids(text, tokenizer) for text in sources[start : start + batch_size]]
            ids = model.generate(
                input_ids=padded(rows, tokenizer.pad_token_id).to(device),
                attention_mask=padded([[1] * len(row) for row in rows], 0).to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
            texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]

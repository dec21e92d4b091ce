"""Answers that a model generates, in batches of like length."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tuninglab.data.batches import Collator, SampleDataset
from tuninglab.data.features import FeatureCache
from tuninglab.data.prompt import decode_answer
from tuninglab.data.sample import Sample
from tuninglab.data.tokens import special_id
from tuninglab.evaluation.encoded import EncodedPictures
from tuninglab.models.generation import ending_with
from tuninglab.progress import working

# Models of fewer parameters answer so many questions together, larger ones the least.
BATCHES, LEAST_BATCH = ((100_000_000, 64), (1_000_000_000, 16)), 8


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Within the block the model is in evaluation mode; after it, in the mode it was in before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.inference_mode()
def generate_answers(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    batch_size: int | None = None,
    max_new_tokens: int = 12,
    features: FeatureCache | None = None,
    pictures: EncodedPictures | None = None,
) -> list[str]:
    """Greedy answers to the last question of each sample, as plain text.

    Args:
        model: a Flamingo, or one wrapped by PEFT; its mode (train or eval) is left as it was.
        processor: its processor.
        samples: dialogues whose last turn is the true answer, which the model does not see.
        batch_size: dialogues generated together; None: by the size of the model.
        max_new_tokens: longer answers are cut, and so are wrong.
        features: what was computed of the pictures, to be read instead.
        pictures: where what is computed of them is kept for the next answers.
    """
    rows = SampleDataset(samples, processor, prompts_only=True, features=features)
    tokens = [len(rows.ids(number)) for number in range(len(rows))]
    # Named by their places: as `evaluate` asks records that have no other names.
    batches = make_batches(tokens, range(1, len(rows) + 1), batch_size or usual_batch_size(model))
    answers: dict[int, str] = {}
    with evaluation_mode(model), working("answering questions", len(rows)) as note:
        for batch in batches:
            inputs = prompt_inputs(model, processor, [rows[k] for k in batch], pictures)
            texts = continued(model, processor, inputs, max_new_tokens=max_new_tokens)
            answers |= zip(batch, texts, strict=True)
            note(len(answers))
    return [answers[number] for number in range(len(rows))]


def usual_batch_size(model: Any) -> int:
    """Questions that a model answers together where nothing else is said: by its size."""
    parameters = model.num_parameters()
    return next((size for most, size in BATCHES if parameters < most), LEAST_BATCH)


def make_batches(
    tokens: Sequence[int], names: Sequence[str | int], batch_size: int
) -> list[list[int]]:
    """Numbers of questions by length of their prompts, longest first, in batches.

    Longest first, so that memory that does not suffice shows at once. Equally long ones stand by
    their names, shorter names first as numbers count: the order of the data changes nothing.
    """

    def place(number: int) -> tuple[int, int, str]:
        name = str(names[number])
        return -tokens[number], len(name), name

    order = sorted(range(len(tokens)), key=place)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def prompt_inputs(
    model: Any,
    processor: Any,
    rows: Sequence[dict[str, Any]],
    pictures: EncodedPictures | None = None,
) -> dict[str, Any]:
    """Prompts as one batch on the model's device, padded on the left.

    Args:
        model: a Flamingo, or one wrapped by PEFT.
        processor: its processor.
        rows: B of them, as a `SampleDataset` of prompts has them.
        pictures: where what is computed of pictures is kept; then it stands in place of pixels.

    Returns:
        `input_ids` and `attention_mask` (B, T), and the pictures under one of the model's names.
    """
    collate = Collator(processor.tokenizer.pad_token_id, processor.image_size, "left")
    inputs = collate(rows).to(next(model.parameters()).device).inputs
    return inputs if pictures is None else pictures.encoded(model, inputs)


def continued(model: Any, processor: Any, inputs: dict[str, Any], **options: Any) -> list[str]:
    """What a model in evaluation mode writes after each prompt, as plain text.

    Args:
        model: a Flamingo, or one wrapped by PEFT.
        processor: its processor, whose prompt tells what ends an answer.
        inputs: from `prompt_inputs`.
        options: of `generate`: max_new_tokens, num_beams ... Nothing is drawn unless one says so.
    """
    tokenizer, prompt = processor.tokenizer, processor.prompt
    ending = ending_with(model, special_id(prompt.end, tokenizer))
    ids = model.generate(**inputs, **({"do_sample": False} | ending | options))
    new = ids[:, inputs["input_ids"].shape[1] :].tolist()
    return [decode_answer(row, tokenizer, prompt) for row in new]

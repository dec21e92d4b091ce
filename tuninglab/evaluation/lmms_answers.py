"""Answers to what lmms-eval asks, by the batches of all other evaluation."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from tuninglab.data.batches import Collator, SampleDataset
from tuninglab.data.prompt import IGNORED
from tuninglab.data.tokens import text_ids
from tuninglab.errors import UserError
from tuninglab.evaluation.answers import continued, evaluation_mode, prompt_inputs
from tuninglab.evaluation.encoded import EncodedPictures
from tuninglab.evaluation.lmms import Asked, Settings
from tuninglab.progress import working


@torch.inference_mode()
def answers_to(
    model: Any,
    processor: Any,
    asked: Sequence[Asked],
    batch_size: int = 1,
    pictures: EncodedPictures | None = None,
) -> list[str]:
    """Generated answers, in the order of the questions; they do not depend on `batch_size`.

    But where a task samples them: the numbers drawn depend on the order.

    Args:
        model: a Flamingo, or one wrapped by PEFT.
        processor: its processor.
        asked: questions with their settings.
        batch_size: questions answered together.
        pictures: where what is computed of them is kept for the next questions.

    Raises:
        UserError: a question cannot be asked, or leaves the model no room for an answer.
    """
    alike: dict[Settings, list[int]] = defaultdict(list)
    # Longest first: what does not fit into memory shows at once.
    for index in sorted(range(len(asked)), key=lambda k: -asked[k].length):
        alike[asked[index].settings].append(index)
    batches = [
        (settings, members[start : start + batch_size])
        for settings, members in alike.items()
        for start in range(0, len(members), batch_size)
    ]
    answers = [""] * len(asked)
    with evaluation_mode(model), working("answering lmms-eval", len(asked)) as note:
        done = 0
        for settings, members in batches:
            some = [asked[k] for k in members]
            texts = _answer_batch(model, processor, some, settings, pictures)
            for index, text in zip(members, texts, strict=True):
                answers[index] = settings.cut(text)
            done += len(members)
            note(done)
    return answers


def _answer_batch(
    model: Any,
    processor: Any,
    asked: Sequence[Asked],
    settings: Settings,
    pictures: EncodedPictures | None,
) -> list[str]:
    rows = _prompts(processor, asked)
    # A prompt may leave less room than is wanted; no other row of the batch has a say in it.
    wanted = settings.max_new_tokens
    rooms = [_room(model, row, one, wanted) for row, one in zip(rows, asked, strict=True)]
    texts = [""] * len(rows)
    options = dict(settings.options)
    for room in sorted(set(rooms)):
        members = [k for k, own in enumerate(rooms) if own == room]
        some = [rows[k] for k in members]
        inputs = prompt_inputs(model, processor, some, pictures)
        made = continued(model, processor, inputs, max_new_tokens=room, **options)
        for index, text in zip(members, made, strict=True):
            texts[index] = text
    return texts


def _prompts(processor: Any, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    rows = SampleDataset([one.sample() for one in asked], processor, prompts_only=True)
    return [rows[k] for k in range(len(rows))]


def _room(model: Any, row: Mapping[str, Any], asked: Asked, wanted: int) -> int:
    """Of so many tokens wanted after a prompt, how many the model can read."""
    text = model.config.get_text_config(decoder=True)
    longest = getattr(text, "max_position_embeddings", None)
    tokens = len(row["input_ids"])
    if longest is not None and tokens >= longest:
        raise UserError(
            f"lmms-eval, {asked.origin}: the question has {tokens} tokens and the model reads at "
            f"most {longest}; choose a task with shorter questions, or fewer examples"
        )
    # Language models without learned or rotary limits (ALiBi) name none.
    return wanted if longest is None else min(wanted, longest - tokens)


@torch.inference_mode()
def losses_of(
    model: Any,
    processor: Any,
    asked: Sequence[Asked],
    batch_size: int = 1,
    pictures: EncodedPictures | None = None,
) -> list[tuple[float, bool]]:
    """Loss of each question's continuation, and whether greedy generation would write it.

    The mean cross-entropy of the continuation's own tokens, as the model classes of lmms-eval have
    it, without the token that ends an answer. Blanks around a continuation belong to the plain text
    prompts of other models and are left out.

    Raises:
        UserError: a question cannot be asked, or a continuation is empty or too long.
    """
    collate = Collator(processor.tokenizer.pad_token_id, processor.image_size)
    device = next(model.parameters()).device
    found: list[tuple[float, bool]] = []
    with evaluation_mode(model), working("scoring for lmms-eval", len(asked)) as note:
        for start in range(0, len(asked), batch_size):
            some = asked[start : start + batch_size]
            rows = _prompts(processor, some)
            for row, one in zip(rows, some, strict=True):
                _continue(model, processor, row, one)
            inputs = collate(rows).to(device).inputs
            targets = inputs.pop("labels")[:, 1:]  # (B, T - 1)
            inputs = inputs if pictures is None else pictures.encoded(model, inputs)
            logits = model(**inputs).logits[:, :-1].float().transpose(1, 2)  # (B, V, T - 1)
            losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
            scored = targets != IGNORED
            means = losses.sum(-1) / scored.sum(-1)
            greedy = ((logits.argmax(1) == targets) | ~scored).all(-1)
            found += zip(means.tolist(), greedy.tolist(), strict=True)
            note(len(found))
    return found


def _continue(model: Any, processor: Any, row: dict[str, Any], asked: Asked) -> None:
    """Append the continuation to a prompt, its tokens as labels."""
    ids = text_ids(asked.continuation.strip(), processor.tokenizer)
    if not ids:
        raise UserError(f"lmms-eval, {asked.origin}: a continuation to be scored is empty")
    room = _room(model, row, asked, len(ids))
    if len(ids) > room:
        raise UserError(
            f"lmms-eval, {asked.origin}: a continuation to be scored has {len(ids)} tokens and the "
            f"model has room for {room}"
        )
    row["labels"] = [IGNORED] * len(row["input_ids"]) + ids
    row["input_ids"] = row["input_ids"] + ids

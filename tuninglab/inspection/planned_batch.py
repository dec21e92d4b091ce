"""Batches of a shape: as the collators make them, of ids that say nothing."""

from typing import Any

import torch
from torch import Tensor

from tuninglab.data.batches import Batch
from tuninglab.data.prompt import IGNORED
from tuninglab.inspection.cost import Shape
from tuninglab.models.named_parts import SCOPE

ANY_TOKEN = 1  # of any vocabulary


def batch_of(base: Any, shape: Shape) -> Batch:
    """A batch for a Flamingo or a T5, its pictures without numbers inside `Shapes`.

    Args:
        base: the model, without PEFT around it; one without a tower gets features of pictures.
        shape: of the batch. Image marks stand at even distances, labels at the end of each row.
    """
    ids = torch.full((shape.rows, shape.tokens), ANY_TOKEN)
    answers = min(shape.tokens, -(-shape.answer_tokens // shape.rows))  # of each row
    if not hasattr(base, SCOPE):
        labels = torch.full((shape.rows, answers), ANY_TOKEN)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        return Batch(inputs, [], shape.answer_tokens)
    marks = min(shape.pictures, shape.tokens)
    places = (torch.arange(marks) * shape.tokens) // max(1, marks)
    ids[:, places] = base.config.image_token_id
    labels = torch.full_like(ids, IGNORED)
    labels[:, shape.tokens - answers :] = ANY_TOKEN
    inputs = {"input_ids": ids, "labels": labels, **_pictures(base, shape)}
    if shape.documents:
        # Of about one length each; there is no mask then.
        number = torch.arange(shape.tokens) * shape.documents // shape.tokens
        inputs["documents"] = number.expand(shape.rows, -1).contiguous()
    else:
        inputs["attention_mask"] = torch.ones_like(ids)
    return Batch(inputs, [], shape.answer_tokens)


def _pictures(base: Any, shape: Shape) -> dict[str, Tensor]:
    """Pixels, or where the tower was left out what a cache has of them; a blank one if none."""
    config, count = base.config, max(1, shape.pictures)
    vision = config.vision_config
    if any(True for _ in base.vision_encoder.parameters()):
        side = vision.image_size
        return {"pixel_values": torch.empty(shape.rows, count, shape.frames, 3, side, side)}
    latents: Tensor = base.perceiver.latents
    # As it was computed, under the autocast of the run.
    half = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if half else latents.dtype
    if any(parameter.requires_grad for parameter in base.perceiver.parameters()):
        patches = (vision.image_size // vision.patch_size) ** 2
        size = (shape.rows, count, shape.frames, patches, vision.hidden_size)
        return {"patch_features": torch.empty(size, dtype=dtype)}
    size = (shape.rows, count, *latents.shape[-2:])
    return {"image_features": torch.empty(size, dtype=dtype)}

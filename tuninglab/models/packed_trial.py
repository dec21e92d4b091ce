"""Packing tried once on a language model, so that no document is trained on its neighbour."""

from typing import Any

import torch
from torch import Tensor

from tuninglab.models.conditioning import restarting_positions

# Tokens of each of the two documents of the trial, and the rows of it.
LENGTH, ROWS = 6, 2
# Of what a neighbour changes where it is seen. A short convolution over a state let 0.5 % pass;
# where nothing passes, all is computed alike. But bitsandbytes' int8 goes by the largest numbers of
# all rows.
MOST_CHANGE, MOST_OF_BNB = 1e-4, 0.02


@torch.no_grad()
def packing_problem(model: Any, one_row: bool = False) -> str | None:
    """Why a Flamingo cannot read documents packed into a row; None if it can.

    Two documents in a row: the second must come out the same, whatever stands in the first.

    Args:
        model: on its device, in eval mode.
        one_row: batches are of one row, which some attention functions need to tell documents.
    """
    kind = model.config.text_config.model_type
    if "position_ids" not in model._lang_arguments:
        return f"a {kind} takes no positions, so nothing tells it where a document begins"
    rows = 1 if one_row else ROWS
    words = model.get_input_embeddings().weight.shape[0]
    drawn = torch.Generator().manual_seed(0)
    first, other, second = torch.randint(0, words, (3, rows, LENGTH), generator=drawn)
    ids = torch.stack([torch.cat([text, second], 1) for text in (first, other)])
    documents = (torch.arange(2 * LENGTH) // LENGTH).expand(rows, -1)

    def change(positions: Tensor) -> float:
        """By how much the logits of the second document differ."""
        given = {"position_ids": positions.to(model.device), "use_cache": False}
        seen = [model.lang_encoder(input_ids=text.to(model.device), **given) for text in ids]
        one, two = (outputs.logits[:, LENGTH:].float() for outputs in seen)
        return float((one - two).abs().max())

    plain = torch.arange(2 * LENGTH).expand(rows, -1)
    most = MOST_OF_BNB if getattr(model, "is_loaded_in_8bit", False) else MOST_CHANGE
    if change(restarting_positions(documents)) <= most * change(plain):
        return None
    return (
        f"the attention of a {kind} ({model.config.text_config._attn_implementation}) or what "
        "it keeps beside it runs on from one document into the next"
    )

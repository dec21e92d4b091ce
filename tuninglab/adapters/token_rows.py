"""Rows of the embeddings that train, input and output: those of new tokens and of answers."""

from collections.abc import Sequence
from typing import Any

from tuninglab.config.tuning import LoraTuning
from tuninglab.errors import UserError


def rows_problem(model: Any, direct: Sequence[str] = ()) -> str:
    """Why rows of the embeddings cannot train on their own in this model; "" if they can.

    Args:
        model: a Flamingo.
        direct: names of the modules that train in full.
    """
    head = model.get_output_embeddings()
    whole = {id(module) for name in direct for module in model.get_submodule(name).modules()}
    if whole & {id(head), id(model.get_input_embeddings())}:
        return "the whole table trains"
    if getattr(head, "bias", None) is not None:
        return (
            "the output layer of this language model has a bias, which PEFT's token training drops "
            "(peft 0.21). Train the layer in full instead: modules_to_save"
        )
    if head is not None and not head.weight.is_floating_point():
        return "the output layer is quantised. Name a base with a float one"
    return ""


def token_rows(
    model: Any, tuning: LoraTuning, answer_ids: Sequence[int] = ()
) -> dict[str, list[int]] | None:
    """Rows that train: ids by embedding module, input and (where untied) output; None for none.

    Raises:
        UserError: those of the new tokens are asked for, and cannot train.
    """
    ids = set(answer_ids)
    if tuning.train_new_tokens:
        ids |= {model.config.eoc_token_id, model.config.image_token_id}
        if problem := rows_problem(model):
            raise UserError(f"train_new_tokens: {problem}.")
    if not ids:
        return None
    names = {id(module): name for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    rows = {names[id(model.get_input_embeddings())]: sorted(ids)}
    if head is not None and not model.config.tie_word_embeddings:
        rows[names[id(head)]] = sorted(ids)
    return rows

"""Weights of a file into a model: checked before anything heavy is loaded, then copied in place."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tuninglab.errors import UserError
from tuninglab.models.formats.layout import Key


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes; copies in a file usually share their storage."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    # Without values (meta device) the names alone must do.
    if one.is_meta or one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
        return True
    # As bytes: NaN equals itself, and 0 differs from -0.
    return torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (one, other)))


def misfits(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], keys: Iterable[Key]
) -> list[str]:
    """What does not fit between the used keys of a file and the weights of a model.

    Args:
        expected: the state dict of the model, on whatever device; only shapes are read.
        tensors: the tensors of the file.
        keys: their fates.
    """
    problems = []
    for key in keys:
        if key.target is None:
            continue
        tensor = key.rows(tensors)
        if key.target not in expected:
            problems.append(f"{key.name}: the model has no {key.target}")
        elif tensor.shape != expected[key.target].shape:
            shape = tuple(expected[key.target].shape)
            problems.append(f"{key.name} is {tuple(tensor.shape)}, the model's {shape}")
        elif not tensor.is_floating_point() or tensor.element_size() < 2:
            problems.append(f"{key.name} holds {tensor.dtype}: quantised weights cannot be used")
    return problems


@torch.no_grad()
def fill(model: nn.Module, tensors: Mapping[str, Tensor], keys: Iterable[Key]) -> list[float]:
    """Copy every used key into the model, in the number format that the model has.

    Returns:
        Of each tensor that the change of format rounded, the largest change of a value.

    Raises:
        UserError: two different tensors belong to one weight, or a value does not fit the format.
    """
    state, changes = model.state_dict(), []
    filled: dict[int, Key] = {}
    for key in keys:
        if key.target is None:
            continue
        target, source = state[key.target], key.rows(tensors)
        before = filled.setdefault(target.data_ptr(), key)
        # Tied tables: two names of the model for one weight.
        if before is not key and not same_bits(source, before.rows(tensors)):
            raise UserError(
                f"{before.name} and {key.name} differ in the file, but the language model ties "
                "them to one weight (tie_word_embeddings in its config.json). Use the language "
                "model that the checkpoint was trained with"
            )
        target.copy_(source)
        if target.dtype != source.dtype:
            changes.append(_change(key, target, source))
    return [change for change in changes if change]


def _change(key: Key, target: Tensor, source: Tensor) -> float:
    # In the wider of both formats no digit is lost to the comparison itself.
    change = (target.to(torch.promote_types(target.dtype, source.dtype)) - source).abs().max()
    if not change.isfinite() and source.isfinite().all():
        raise UserError(
            f"{key.name} has values up to {source.abs().max():.3g}, beyond {target.dtype}. Give "
            "--dtype bf16 or --dtype fp32"
        )
    return float(change.nan_to_num())

"""Passes over the rows of a matrix: float to int8 with a scale a row, and back."""

import torch
from torch import Tensor

LIMIT = 127  # symmetric: -128 is not used, so that a row and its negative quantise alike


def quantise_rows(x: Tensor, column_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows of x (M, K), times `column_scale` (K,) -> int8 (M, K) and their float32 scales (M,).

    A row that holds NaN or infinity gets the scale NaN, so that it never comes back as numbers.
    """
    x = x.float()
    if column_scale is not None:
        x = x * column_scale
    largest = x.abs().amax(1)
    inverse = torch.where(largest > 0, LIMIT / largest, 0.0)
    scale = torch.where(torch.isfinite(largest), largest / LIMIT, torch.nan)
    return (x * inverse[:, None]).round_().nan_to_num_(0.0).to(torch.int8), scale


def scale_rows(
    sums: Tensor, row_scale: Tensor, column_scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Sums (M, N) of int8 products, times `row_scale` (M,) and `column_scale` (N,), in `dtype`."""
    scaled = sums.float().mul_(row_scale[:, None])
    if column_scale is not None:
        scaled.mul_(column_scale)
    return scaled.to(dtype)


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """Product of int8 matrices (M, K) and (K, N), summed in int32 (M, N)."""
    return torch._int_mm(left, right)

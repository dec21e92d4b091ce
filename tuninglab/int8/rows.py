"""Passes over the rows of a matrix: float to int8 with a scale a row, and back.

Each pass is written in torch, in C (kernels/c) and in Triton; kernels/dispatch.py chooses.
"""

import threading
from typing import Any

import torch
from torch import Tensor, _int_mm, nn  # pyright: ignore[reportPrivateImportUsage]

from tuninglab.kernels.dispatch import Kernel, in_triton, run
from tuninglab.kernels.shapes import current_shapes

_QUANTISE = Kernel("quantise_rows(x: T[M~ K], column: f32[K]?) -> q: i8[M K], scale: f32[M]")
_SCALE_INT8 = Kernel("scale_int8(q: i8[M N], row: f32[M], column: f32[N]?, dtype: T) -> y: T[M N]")
_SCALE_SUMS = Kernel(
    "scale_sums(sums: i32[M~ N~], row: f32[M], column: f32[N]?, dtype: T) -> y: T[M N]"
)
LIMIT = 127  # symmetric: -128 is not used, so that a row and its negative quantise alike
TINIEST = torch.finfo(torch.float32).tiny  # what is smaller has no reciprocal in float32


def frozen(tensor: Tensor) -> nn.Parameter:
    """A tensor as a parameter that never trains."""
    return nn.Parameter(tensor, requires_grad=False)


def quantise_rows(x: Tensor, column_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows of x (M, K), times `column_scale` (K,) -> int8 (M, K) and their float32 scales (M,).

    A row that holds NaN or infinity gets the scale NaN, so that it never comes back as numbers.
    """
    x = x if x.stride(1) == 1 else x.contiguous()
    q, scale = run(_QUANTISE, _quantise_rows, x, column_scale)
    return q, scale


def scale_rows(
    numbers: Tensor, row_scale: Tensor, column_scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Whole numbers (M, N) times `row_scale` (M,) and `column_scale` (N,), in `dtype`.

    The numbers are int8, or the int32 sums of int8 products.
    """
    if numbers.dtype == torch.int8:
        numbers = numbers.contiguous()
        return run(_SCALE_INT8, _scale_rows, numbers, row_scale, column_scale, dtype)
    return run(_SCALE_SUMS, _scale_rows, numbers, row_scale, column_scale, dtype)


def product(
    left: Tensor,
    row_scale: Tensor,
    right: Tensor,
    column_scale: Tensor | None,
    dtype: torch.dtype,
    lora: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """int8 matrices (M, K) and (K, N) multiplied and scaled, plus LoRA's c (low up): (M, N).

    Args:
        left: its rows have `row_scale` (M,).
        row_scale: float32.
        right: its columns have `column_scale` (N,), if any; it may lie transposed.
        column_scale: float32.
        dtype: of the result.
        lora: low (M, R) and up (R, N) of the format `dtype`, and the factor c.
    """
    if in_triton(left, right, dtype):
        from tuninglab.kernels.triton_products import int8_product

        return int8_product(left, right, row_scale, column_scale, dtype, lora)
    # int32 (M, N), in memory that the next product overwrites: scaled before anything else.
    y = scale_rows(multiply(left, right), row_scale, column_scale, dtype)
    if lora is not None:
        low, up, factor = lora
        y.addmm_(low, up, alpha=factor)
    return y


# Below so many rows, oneDNN is faster with the weight on the left, where it is not repacked:
# 64 rows of 4096 x 4096 took 3.0 ms against 5.3 ms.
FEW_ROWS = 128


def multiply(left: Tensor, right: Tensor, row_major: bool = False) -> Tensor:
    """Product of int8 matrices (M, K) and (K, N), summed in int32 (M, N).

    On a CPU the result lies in memory that the next product of this thread uses again: a new
    allocation would cost page faults. `row_major` asks for the result to lie so.
    """
    if left.shape[1] == 1 and left.is_cpu:
        # torch 2.13 takes such a matrix for a transposed one and returns other numbers.
        return left.int() * right.int()
    if in_triton(left, right):
        from tuninglab.kernels.triton_products import int8_product

        return int8_product(left, right)
    if not left.is_cpu or torch.compiler.is_compiling():
        return _int_mm(left, right)
    rows, columns = len(left), right.shape[1]
    # A column (K, 1) has the strides of a transposed matrix as well, and is misread as one.
    transposed = right.stride(0) == 1 and columns > 1
    if 1 < rows <= FEW_ROWS and transposed and not row_major:
        return _int_mm(right.t(), left.t(), out=_scratch(columns, rows)).t()
    return _int_mm(left, right, out=_scratch(rows, columns))


_memory = threading.local()


def _scratch(rows: int, columns: int) -> Tensor:
    memory: Any = current_shapes() or _memory
    held = getattr(memory, "sums", None)
    if held is None or held.numel() < rows * columns:
        # An inference tensor could not be used again in training.
        with torch.inference_mode(False):
            held = memory.sums = torch.empty(rows * columns, dtype=torch.int32)
    return held[: rows * columns].view(rows, columns)


def _quantise_rows(x: Tensor, column_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    x = x.float()
    if column_scale is not None:
        x = x * column_scale
    largest = x.abs().amax(1)
    finite = torch.isfinite(largest)
    inverse = torch.where((largest >= TINIEST) & finite, LIMIT / largest, 0.0)
    scale = torch.where(finite, torch.where(inverse > 0, largest / LIMIT, 0.0), torch.nan)
    return (x * inverse[:, None]).round().nan_to_num(0.0).to(torch.int8), scale


def _scale_rows(
    numbers: Tensor, row_scale: Tensor, column_scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    scaled = numbers.float() * row_scale[:, None]
    if column_scale is not None:
        scaled = scaled * column_scale
    return scaled.to(dtype)

"""Products with int8 weights in Triton, for GPUs: int8 x int8 both ways, and few float rows.

The weight stays as it lies, row by row, for both ways: where torch._int_mm wants a transposed copy
for x @ W of the backward pass (Hopper), a tile is turned inside of the kernel.
"""

# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportIndexIssue=false
# pyright: reportArgumentType=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tuninglab.kernels.gpu import FEW_ROWS


@triton.jit(do_not_specialize=["M"])
def int8_tile(
    left,
    right,
    row,
    column,
    low,
    up,
    factor,
    y,
    M,
    N,
    K,
    R,
    right_down,
    right_across,
    up_down,
    up_across,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    """A tile (BM, BN) of y (M, N) = row (left right) column + factor (low up).

    left: int8 (M, K). right: int8 (K, N), its steps given. row (M,), column (N,), and low (M, R)
    with up (R, N), its steps given, may be None. Without row, y is the sums in int32.
    """
    i = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)[:, None]
    j = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)[None, :]
    across, down = tl.arange(0, BK)[None, :], tl.arange(0, BK)[:, None]
    sums = tl.full((BM, BN), 0, tl.int32)
    for k in range(0, K, BK):
        a = tl.load(left + i * K + (k + across), mask=(i < M) & (k + across < K), other=0)
        place = right + (k + down) * right_down + j * right_across
        b = tl.load(place, mask=(k + down < K) & (j < N), other=0)
        sums = tl.dot(a, b, acc=sums, out_dtype=tl.int32)
    inside = (i < M) & (j < N)
    if row is None:
        tl.store(y + i * N + j, sums, mask=inside)
    else:
        out = sums.to(tl.float32) * tl.load(row + i, mask=i < M, other=0.0)
        if column is not None:
            out *= tl.load(column + j, mask=j < N, other=0.0)
        if low is not None:
            more = tl.full((BM, BN), 0.0, tl.float32)
            for r in range(0, R, BR):
                at, to = r + tl.arange(0, BR)[None, :], r + tl.arange(0, BR)[:, None]
                a = tl.load(low + i * R + at, mask=(i < M) & (at < R), other=0.0)
                place = up + to * up_down + j * up_across
                b = tl.load(place, mask=(to < R) & (j < N), other=0.0)
                # "ieee": float32 stays float32, as torch's own products have it.
                more = tl.dot(a, b, acc=more, input_precision="ieee")
            out += factor * more
        tl.store(y + i * N + j, out.to(y.dtype.element_ty), mask=inside)


def tiles(rows: int, rank: int = 0) -> dict[str, int]:
    """Sizes of the tiles of a product of so many rows: by arithmetic, not tried on a GPU."""
    high = min(128, max(16, 1 << (rows - 1).bit_length()))
    deep = min(64, max(16, 1 << (rank - 1).bit_length()))
    warps = 8 if high == 128 else 4
    return {"BM": high, "BN": 128, "BK": 64, "BR": deep, "num_warps": warps, "num_stages": 3}


def int8_product(
    left: Tensor,
    right: Tensor,
    row: Tensor | None = None,
    column: Tensor | None = None,
    dtype: torch.dtype = torch.int32,
    lora: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """Product of int8 (left right), times row and column, plus c (low up), in one pass: (M, N).

    Args:
        left: int8 (M, K), without gaps.
        right: int8 (K, N), however it lies.
        row: float32 (M,); without it the result is the sums as they are, int32.
        column: float32 (N,), if any.
        dtype: of the result.
        lora: low (M, R) and up (R, N), of one format, and the factor c.

    Raises:
        ValueError: the tensors do not fit each other.
    """
    (rows, size), (depth, out) = left.shape, right.shape
    low, up, factor = lora or (None, None, 0.0)
    rank = 0 if low is None else low.shape[1]
    _check("left", left, torch.int8, (rows, depth), left)
    _check("right", right, torch.int8, (size, out), left, gaps=True)
    _check("row", row, torch.float32, (rows,), left)
    _check("column", column, torch.float32, (out,), left)
    if low is not None and up is not None:
        low = low.contiguous()
        _check("low", low, up.dtype, (rows, rank), left)
        _check("up", up, up.dtype, (rank, out), left, gaps=True)
    y = torch.empty(rows, out, dtype=dtype, device=left.device)
    how = tiles(rows, rank)
    grid = (-(-rows // how["BM"]), -(-out // how["BN"]))
    steps = (*right.stride(), *((0, 0) if up is None else up.stride()))
    with torch.cuda.device_of(left):
        int8_tile[grid](
            left, right, row, column, low, up, factor, y, rows, out, size, rank, *steps, **how
        )
    return y


@triton.jit
def few_rows_tile(
    x, weight, scale, bias, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """A tile (BM, BN) of y (M, N) = x (M, K) weight (N, K)^T scale (N,) + bias (N,), or None."""
    i = tl.arange(0, BM)[:, None]
    j = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)[None, :]
    across, down = tl.arange(0, BK)[None, :], tl.arange(0, BK)[:, None]
    sums = tl.full((BM, BN), 0.0, tl.float32)
    for k in range(0, K, BK):
        a = tl.load(x + i * K + (k + across), mask=(i < M) & (k + across < K), other=0.0)
        b = tl.load(weight + j * K + (k + down), mask=(k + down < K) & (j < N), other=0)
        # Every int8 number is one of any 16-bit format, too: nothing is rounded here.
        sums = tl.dot(a, b.to(a.dtype), acc=sums, input_precision="ieee")
    if scale is not None:
        sums *= tl.load(scale + j, mask=j < N, other=0.0)
    if bias is not None:
        sums += tl.load(bias + j, mask=j < N, other=0.0).to(tl.float32)
    tl.store(y + i * N + j, sums.to(y.dtype.element_ty), mask=(i < M) & (j < N))


FEW = {"BM": FEW_ROWS, "BN": 16, "BK": 128, "num_warps": 4, "num_stages": 4}


def few_rows(
    x: Tensor, weight: Tensor, scale: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Up to FEW_ROWS rows x (M, K) times weight (N, K), int8 with `scale` (N,) or as x: (M, N).

    Raises:
        ValueError: the tensors do not fit each other, or the rows are too many.
    """
    (rows, size), out = x.shape, len(weight)
    if rows > FEW_ROWS:
        raise ValueError(f"few_rows: {rows} rows, at most {FEW_ROWS}")
    _check("x", x, x.dtype, (rows, size), x)
    _check("weight", weight, x.dtype if scale is None else torch.int8, (out, size), x)
    _check("scale", scale, torch.float32, (out,), x)
    _check("bias", bias, x.dtype, (out,), x)
    y = x.new_empty(rows, out)
    with torch.cuda.device_of(x):
        few_rows_tile[-(-out // FEW["BN"]),](x, weight, scale, bias, y, rows, out, size, **FEW)
    return y


def _check(
    name: str, tensor: Any, dtype: torch.dtype, shape: tuple[int, ...], beside: Tensor, gaps=False
) -> None:
    """Let nothing through that a kernel would misread, or read past the end of."""
    if tensor is None:
        return
    fits = tensor.dtype is dtype and tensor.shape == shape and tensor.device == beside.device
    if not (fits and (gaps or tensor.is_contiguous())):
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)}, strides {tensor.stride()}, on "
            f"{tensor.device}; expected {dtype} {shape} on {beside.device}"
        )

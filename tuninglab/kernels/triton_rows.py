"""Passes over the rows of a matrix in Triton, for GPUs: what kernels/c has for CPUs.

A function takes what the C function of its name takes, and the width of a block: a program goes
over a row, a block of columns at a time. Read again, a row comes from a cache. float32 inside.
"""

# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

LIMIT = tl.constexpr(127.0)
FINER = tl.constexpr(254.0)
BITS = tl.constexpr(0x7FFFFFFF)  # of a float32 without its sign
TINIEST = tl.constexpr(0x00800000)  # bits of the smallest normal float32
INFINITE = tl.constexpr(0x7F800000)  # bits of infinity: larger ones are NaN
WIDEST = 2048


def blocks(columns: int) -> dict[str, int]:
    """How a launch divides rows of so many columns."""
    width = min(WIDEST, max(32, 1 << (columns - 1).bit_length()))
    return {"BLOCK": width, "num_warps": max(1, min(8, width // 256))}


@triton.jit
def _nearest(x):
    # Ties to even. Beyond 2^23 a float32 has no fraction left, so what was added rounds it away;
    # Triton has no rint of its own, only one of CUDA's library, which no interpreter knows.
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _load(x, at, columns):
    return tl.load(x + at, mask=at < columns, other=0.0).to(tl.float32)


@triton.jit
def _store(y, at, columns, value):
    tl.store(y + at, value.to(y.dtype.element_ty), mask=at < columns)


@triton.jit
def _scaled(x, column, at, columns):
    value = _load(x, at, columns)
    if column is not None:
        value *= _load(column, at, columns)
    return value


@triton.jit(do_not_specialize=["rows"])
def quantise_rows(x, down, column, q, scale, rows, columns, BLOCK: tl.constexpr):
    """Rows x (M, K), `down` apart, times column (K,) or None -> int8 q (M, K), scale (M,)."""
    row = tl.program_id(0).to(tl.int64)
    x += row * down
    q += row * columns
    # Compared as integers: NaN is then the largest of all, and cannot be overlooked.
    tops = tl.full((BLOCK,), 0, tl.int32)
    for start in range(0, columns, BLOCK):
        value = _scaled(x, column, start + tl.arange(0, BLOCK), columns)
        tops = tl.maximum(tops, value.to(tl.int32, bitcast=True) & BITS)
    top = tl.max(tops, 0)
    largest = top.to(tl.float32, bitcast=True)
    alive = (top >= TINIEST) & (top < INFINITE)
    # Divisions by div_rn are rounded as on a CPU; `/` is not.
    inverse = tl.where(alive, tl.div_rn(LIMIT, largest), 0.0)
    size = tl.where(alive, tl.div_rn(largest, LIMIT), 0.0)
    tl.store(scale + row, tl.where(top < INFINITE, size, float("nan")))
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        whole = _nearest(_scaled(x, column, at, columns) * inverse)
        # NaN has no whole number: undefined, were it cast.
        _store(q, at, columns, tl.where(alive, whole, 0.0))


@triton.jit(do_not_specialize=["rows"])
def scale_sums(sums, down, right, row, column, y, rows, columns, BLOCK: tl.constexpr):
    """Sums (M, N), `down` and `right` apart, times row (M,) and column (N,) or None -> y (M, N)."""
    at_row = tl.program_id(0).to(tl.int64)
    sums += at_row * down
    y += at_row * columns
    scale = tl.load(row + at_row)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(sums + at.to(tl.int64) * right, mask=at < columns, other=0)
        value = value.to(tl.float32) * scale
        if column is not None:
            value *= _load(column, at, columns)
        _store(y, at, columns, value)


@triton.jit(do_not_specialize=["rows"])
def scale_int8(q, row, column, y, rows, columns, BLOCK: tl.constexpr):
    """int8 q (M, N) times row (M,) and column (N,) or None -> y (M, N)."""
    at_row = tl.program_id(0).to(tl.int64)
    q += at_row * columns
    y += at_row * columns
    scale = tl.load(row + at_row)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = _load(q, at, columns) * scale
        if column is not None:
            value *= _load(column, at, columns)
        _store(y, at, columns, value)


@triton.jit(do_not_specialize=["rows"])
def rms_norm(x, weight, eps, y, inverse, rows, columns, BLOCK: tl.constexpr):
    """Rows x (M, N) over their root mean square, times weight (N,) -> y (M, N), inverse (M,)."""
    row = tl.program_id(0).to(tl.int64)
    x += row * columns
    y += row * columns
    squares = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(0, columns, BLOCK):
        value = _load(x, start + tl.arange(0, BLOCK), columns)
        squares += value * value
    root = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(squares, 0), columns.to(tl.float32)) + eps))
    tl.store(inverse + row, root)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        _store(y, at, columns, _load(x, at, columns) * root * _load(weight, at, columns))


@triton.jit(do_not_specialize=["rows"])
def rms_norm_grad(grad, x, inverse, weight, dx, rows, columns, BLOCK: tl.constexpr):
    """Gradient (M, N) of the output -> dx (M, N), that of the input."""
    row = tl.program_id(0).to(tl.int64)
    grad += row * columns
    x += row * columns
    dx += row * columns
    root = tl.load(inverse + row)
    products = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        weighted = _load(grad, at, columns) * _load(weight, at, columns)
        products += weighted * _load(x, at, columns)
    along = tl.sum(products, 0) * root * tl.div_rn(root, columns.to(tl.float32))
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        weighted = _load(grad, at, columns) * _load(weight, at, columns)
        _store(dx, at, columns, (weighted - _load(x, at, columns) * along) * root)


@triton.jit
def _sigmoid(x):
    small = tl.exp(-tl.abs(x))
    far = 1.0 / (1.0 + small)
    return tl.where(x >= 0, far, small * far)


@triton.jit
def _active_and_slope(activation: tl.constexpr, x):
    """An activation and its slope, by its number in savers/glu; one that is not used is dropped."""
    if activation == 0:  # silu
        s = _sigmoid(x)
        active, slope = x * s, s + x * s * (1.0 - s)
    elif activation == 1:  # GELU by tanh: 0.5 (1 + tanh z) is sigmoid(2 z)
        s = _sigmoid(1.59576912 * x * (1.0 + 0.044715 * x * x))
        active = x * s
        slope = s + x * s * (1.0 - s) * 1.59576912 * (1.0 + 0.134145 * x * x)
    else:  # GELU by erf
        below = 0.5 * (1.0 + tl.erf(x * 0.707106781))
        active, slope = x * below, below + x * 0.398942280 * tl.exp(-0.5 * x * x)
    return active, slope


@triton.jit(do_not_specialize=["rows"])
def gated(activation: tl.constexpr, e, u, y, rows, columns, BLOCK: tl.constexpr):
    """activation(e) u of e (M, N) and u (M, N) or None -> y (M, N)."""
    row = tl.program_id(0).to(tl.int64) * columns
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value, _ = _active_and_slope(activation, _load(e + row, at, columns))
        if u is not None:
            value *= _load(u + row, at, columns)
        _store(y + row, at, columns, value)


@triton.jit(do_not_specialize=["rows"])
def gated_grad(
    activation: tl.constexpr,
    grad,
    e,
    e_scale,
    u,
    u_scale,
    de,
    du,
    rows,
    columns,
    BLOCK: tl.constexpr,
):
    """Gradients de and du (M, N), from that of y (M, N), and e and u as int8 rows with scales."""
    at_row = tl.program_id(0).to(tl.int64)
    row = at_row * columns
    scale = tl.load(e_scale + at_row)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        g = _load(grad + row, at, columns)
        active, slope = _active_and_slope(activation, _load(e + row, at, columns) * scale)
        if u is not None:
            by = _load(u + row, at, columns) * tl.load(u_scale + at_row)
            _store(de + row, at, columns, g * slope * by)
            _store(du + row, at, columns, g * active)
        else:
            _store(de + row, at, columns, g * slope)


@triton.jit(do_not_specialize=["rows"])
def cross_entropy(
    sums, row, column, target, loss, coarse, fine, step, rows, columns, BLOCK: tl.constexpr
):
    """Loss (M,) of logits sums (M, N) row (M,) column (N,) at target (M,), and the probabilities.

    These times `column`, as int8 rows (M, N) in steps of `step` (M,) and of step / 254.
    """
    at_row = tl.program_id(0).to(tl.int64)
    sums += at_row * columns
    coarse += at_row * columns
    fine += at_row * columns
    factor = tl.load(row + at_row)
    tops = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        logit = _load(sums, at, columns) * factor * _load(column, at, columns)
        tops = tl.maximum(tops, tl.where(at < columns, logit, float("-inf")))
    top = tl.max(tops, 0)
    totals = tl.full((BLOCK,), 0.0, tl.float32)
    largest = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        by = _load(column, at, columns)
        e = tl.where(at < columns, tl.exp(_load(sums, at, columns) * factor * by - top), 0.0)
        totals += e
        largest = tl.maximum(largest, e * by)
    total, most = tl.sum(totals, 0), tl.max(largest, 0)
    wanted = tl.load(target + at_row)
    logit = tl.load(sums + wanted).to(tl.float32) * factor * tl.load(column + wanted)
    tl.store(loss + at_row, tl.log(total) + top - logit)
    # Where something is NaN, so is the total; it must show in the gradient too.
    known = most / total > 0.0
    tl.store(step + at_row, tl.where(known, most / total / LIMIT, float("nan")))
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        by = _load(column, at, columns)
        e = tl.exp(_load(sums, at, columns) * factor * by - top)
        value = tl.where(known, e * by * (LIMIT / most), 0.0)
        whole = _nearest(value)
        _store(coarse, at, columns, whole)
        _store(fine, at, columns, _nearest((value - whole) * FINER))

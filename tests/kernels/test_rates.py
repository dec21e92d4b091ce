"""How fast each kernel moves bytes, beside torch's own addition of two tensors.

Where a compiler gives up vectorising a loop, results stay right and take 4 to 30 times as long: gcc
12 did so twice. Readings of a clock say little beside other work, so neither `make test` nor
`make test-all` runs these. By hand, a few seconds:

    python -m pytest -m rate tests/kernels
"""

import time

import pytest
import torch
from torch import Tensor

from tuninglab.int8 import cross_entropy, rows
from tuninglab.kernels import compiled
from tuninglab.savers import attention, glu, norm

pytestmark = pytest.mark.rate

ROWS, COLUMNS, ROUNDS = 512, 1024, 30
HEADS = (2, 4, 64, 1024)  # batch, heads, queries, keys: as many scores
# Bytes a second over those of torch.add, on 2 cores with AVX-512 and with gcc 12. What one or two
# passes over memory are made of: 0.5 to 1.6, scalar 0.19 to 0.23. What makes exponentials: 0.17 to
# 0.6, because a number takes 20 to 50 operations; scalar 0.02 to 0.10.
PASS, EXPONENTIAL = 0.35, 0.13


def cases(dtype):
    """Name -> least rate, kernel, its arguments."""
    torch.manual_seed(0)
    x, u = (torch.randn(ROWS, COLUMNS).to(dtype) for _ in range(2))
    q, p = (torch.randint(-127, 128, (ROWS, COLUMNS), dtype=torch.int8) for _ in range(2))
    sums = torch.randint(-9999, 9999, (ROWS, COLUMNS), dtype=torch.int32)
    row, column = torch.rand(ROWS) / 100, torch.rand(COLUMNS)
    scores, other, total = x.view(HEADS), u.view(HEADS), torch.rand(HEADS[:3])
    mask = torch.ones(HEADS[0], HEADS[2], HEADS[3], dtype=torch.bool)
    targets = torch.zeros(ROWS, dtype=torch.long)
    found = {
        "rms_norm": (PASS, norm._NORM, x, column, 1e-6),
        "rms_norm_grad": (PASS, norm._GRAD, x, u, row, column),
        "softmax": (EXPONENTIAL, attention._SOFTMAX, scores, other[0], mask, 1, 0.1),
        "softmax_grad": (
            *(EXPONENTIAL, attention._SOFTMAX_GRAD),
            *(scores, other[0], mask, 1, 0.1, total, other),
        ),
        "cross_entropy": (EXPONENTIAL, cross_entropy._LOSS, sums, row, column, targets),
    }
    for word, scale in {"": None, " by columns": column}.items():
        found["quantise_rows" + word] = (PASS, rows._QUANTISE, x, scale)
        found["scale_sums" + word] = (PASS, rows._SCALE_SUMS, sums, row, scale, dtype)
        found["scale_int8" + word] = (PASS, rows._SCALE_INT8, q, row, scale, dtype)
    for number, name in enumerate(("silu", "gelu by tanh", "gelu by erf")):
        for word, by in {"": (None, None, None), " gated": (u, p, row)}.items():
            found[name + word] = (EXPONENTIAL, glu._GATED, number, x, by[0])
            found[f"{name}{word}, slope"] = (EXPONENTIAL, glu._GRAD, number, x, q, row, *by[1:])
    return found


def seconds(function, *given):
    # Of this thread alone: waiting for a core does not count.
    start = time.thread_time()
    made = function(*given)
    return time.thread_time() - start, made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", cases(torch.float32))
def test_it_is_vectorised(name, dtype):
    if compiled.library() is None:
        pytest.skip(compiled.kernels_here()[1])
    least, kernel, *given = cases(dtype)[name]
    a, b = (torch.randn(ROWS, COLUMNS).to(dtype) for _ in range(2))
    ours, theirs, moved = [], [], 0
    for _ in range(ROUNDS):
        # Anew, because some kernels write where they read.
        fresh = [value.clone() if isinstance(value, Tensor) else value for value in given]
        taken, made = seconds(kernel, *fresh)
        ours.append(taken)
        theirs.append(seconds(torch.add, a, b)[0])
        if not moved:
            written = [t for t in (made if isinstance(made, list) else [made]) if t is not None]
            pairs = [(t, was) for t, was in zip(fresh, given, strict=True) if isinstance(t, Tensor)]
            written += [t for t, was in pairs if not torch.equal(t, was)]
            moved = sum(t.nbytes for t in [*written, *(t for t, _ in pairs)])
    rate = (moved / min(ours)) / (3 * a.nbytes / min(theirs))
    print(f"{name}: {rate:.2f}")
    assert rate >= least

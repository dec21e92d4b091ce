"""Row passes against numpy in float64, with C kernels and without."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuninglab.int8.rows import multiply, quantise_rows, scale_rows

SHAPES = [(0, 8), (1, 1), (1, 513), (3, 7), (5, 16), (64, 33), (130, 48), (17, 511)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_rounded_to_the_nearest_of_255_steps(kernels, shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    q, scale = quantise_rows(x)
    exact = x.double().numpy()
    steps = np.abs(exact).max(1, keepdims=True) / 127
    assert q.dtype == torch.int8 and scale.dtype == torch.float32
    np.testing.assert_allclose(scale.double().numpy(), steps[:, 0], rtol=1e-6)
    # At a tie, and only there, float32 may round the other way.
    assert np.all(np.abs(exact / steps - q.numpy()) <= 0.5 + 1e-4)
    assert np.abs(q.numpy().astype(int)).max(initial=0) <= 127


def test_columns_are_scaled_before_rounding(kernels):
    x, column = torch.randn(6, 40), torch.rand(40) + 0.1
    q, scale = quantise_rows(x, column)
    expected, expected_scale = quantise_rows((x * column).contiguous())
    assert (q.int() - expected.int()).abs().max() <= 1
    torch.testing.assert_close(scale, expected_scale)


def test_rows_of_a_matrix_that_lies_otherwise(kernels):
    x = torch.randn(40, 24)
    for view in (x.t(), x[::2], x[:, 3:20], x[:, ::2]):
        q, scale = quantise_rows(view)
        expected, expected_scale = quantise_rows(view.clone(memory_format=torch.contiguous_format))
        assert torch.equal(q, expected) and torch.equal(scale, expected_scale)


def test_a_row_of_zeros_stays_zero(kernels):
    x = torch.randn(3, 20)
    x[1] = 0
    q, scale = quantise_rows(x)
    assert scale[1] == 0 and not q[1].any()
    # Numbers whose reciprocal would be infinite are zeros as well.
    q, scale = quantise_rows(torch.full((2, 20), 1e-42))
    assert not scale.any() and not q.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_never_comes_back_as_numbers(kernels, bad, dtype):
    x = torch.randn(4, 33, dtype=dtype)
    x[2, 17] = bad
    q, scale = quantise_rows(x)
    back = scale_rows(q, scale, None, torch.float32)
    assert back[2].isnan().all()
    assert back[[0, 1, 3]].isfinite().all()


def test_a_huge_outlier_leaves_the_other_rows_alone(kernels):
    x = torch.randn(4, 33)
    expected, _ = quantise_rows(x)
    x[1, 5] = 1e30
    q, scale = quantise_rows(x)
    assert torch.equal(q[[0, 2, 3]], expected[[0, 2, 3]])
    assert q[1, 5] == 127 and scale[1] == pytest.approx(1e30 / 127)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_whole_numbers_are_scaled_by_row_and_column(kernels, dtype):
    sums = torch.randint(-(10**6), 10**6, (9, 37), dtype=torch.int32)
    row, column = torch.rand(9) * 1e-3, torch.rand(37)
    exact = sums.double() * row.double()[:, None] * column.double()
    torch.testing.assert_close(scale_rows(sums, row, column, dtype), exact.to(dtype))
    turned = scale_rows(sums.t().contiguous().t(), row, column, dtype)
    assert torch.equal(turned, scale_rows(sums, row, column, dtype))
    q = torch.randint(-127, 128, (9, 37), dtype=torch.int8)
    exact = q.double() * row.double()[:, None]
    torch.testing.assert_close(scale_rows(q, row, None, dtype), exact.to(dtype))


@settings(deadline=None, max_examples=60)
@given(m=st.integers(0, 140), n=st.integers(1, 70), k=st.integers(1, 70), seed=st.integers(0, 99))
def test_products_are_exact(m, n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randint(-127, 128, (m, k), generator=generator, dtype=torch.int8)
    right = torch.randint(-127, 128, (n, k), generator=generator, dtype=torch.int8)
    # Cloned, because the result lies in memory that the next product takes.
    forward = multiply(left, right.t()).clone()
    backward = multiply(left, right.t().contiguous()).clone()
    exact = left.long() @ right.long().t()
    assert torch.equal(forward.long(), exact)
    assert torch.equal(backward.long(), exact)

"""Attention as it is chosen, against attention written out in float64 and against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from tuninglab.kernels import attention
from tuninglab.kernels.attention import SCORES_AT_A_TIME, attend, takes_products

SHAPES = ((3, 4, 9, 9, 8), (2, 2, 7, 5, 16), (2, 8, 257, 257, 8), (1, 2, 1, 6, 8))


@pytest.fixture(autouse=True)
def bf16_here(monkeypatch):
    # Elsewhere the products are emulated: slow, but the same numbers.
    monkeypatch.setattr(attention, "bf16_cpu", lambda: True)


def draw(shape, dtype, size=1.0):
    """Query, key, value and gradient, lying in memory as projections leave them."""
    rows, heads, queries, keys, width = shape
    torch.manual_seed(0)
    drawn = (torch.randn(rows, n, heads, width) for n in (queries, keys, keys, queries))
    q, k, v, grad = (tensor.transpose(1, 2).to(dtype) for tensor in drawn)
    return q * size, k, v, grad


def masks(shape):
    """None, one with padding in a row and a query that may look nowhere, and a causal one."""
    rows, _, queries, keys, _ = shape
    padded = torch.ones(rows, 1, queries, keys, dtype=torch.bool)
    padded[0, :, :, : keys // 2] = False
    padded[-1, :, queries // 2] = False
    return {"none": None, "padded": padded, "causal": torch.ones_like(padded[:1]).tril()}


def written_out(q, k, v, mask, scaling):
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) * scaling
    weights = scores.exp() if mask is None else scores.exp() * mask
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)
    return torch.einsum("bhts,bhsd->bhtd", weights, v)


def with_gradients(function, q, k, v, grad):
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


def errors(values, expected):
    pairs = zip(values, expected, strict=True)
    # A gradient may be 0: that of the only key there is.
    return [float((a.double() - b).norm() / b.norm().clamp(min=1e-9)) for a, b in pairs]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["none", "padded", "causal"])
@pytest.mark.parametrize("size", [1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_and_gradients_are_as_exact_as_torch_s_own(shape, kind, size, dtype):
    *inputs, grad = draw(shape, dtype, size)
    mask, scaling = masks(shape)[kind], 0.3
    causal = kind == "causal"
    exact = [t.double() for t in inputs]
    expected = with_gradients(lambda *t: written_out(*t, mask, scaling), *exact, grad.double())

    def ours(q, k, v):
        return attend(q, k, v, None if causal else mask, causal, scaling)

    def torch_s(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)

    found = errors(with_gradients(ours, *inputs, grad), expected)
    own = errors(with_gradients(torch_s, *inputs, grad), expected)
    floor = {torch.float32: 1e-5, torch.bfloat16: 5e-3}[dtype]
    assert all(error < max(1.3 * theirs, floor) for error, theirs in zip(found, own, strict=True))


def test_a_query_that_may_look_nowhere_is_0_and_passes_no_gradient():
    shape = SHAPES[0]
    *inputs, grad = draw(shape, torch.bfloat16)
    mask = masks(shape)["padded"]
    y, dq, *_ = with_gradients(lambda *t: attend(*t, mask), *inputs, grad)
    nowhere = shape[2] // 2
    assert torch.count_nonzero(y[-1, :, nowhere]) == torch.count_nonzero(dq[-1, :, nowhere]) == 0
    assert y.isfinite().all() and torch.count_nonzero(y[0, :, nowhere])


def test_what_is_not_finite_shows():
    q, k, v, _ = draw(SHAPES[0], torch.bfloat16)
    q[1, 2, 3, 4] = float("nan")
    y = attend(q.requires_grad_(), k, v, masks(SHAPES[0])["causal"])
    assert y[1, 2, 3].isnan().all() and y[0].isfinite().all()


def test_rows_go_in_groups():
    rows, heads, queries = 5, 8, 257
    assert rows * heads * queries * queries > 2 * SCORES_AT_A_TIME
    q, k, v, _ = draw((rows, heads, queries, queries, 8), torch.bfloat16)
    whole = attend(q.requires_grad_(), k, v)
    for row in range(rows):
        part = slice(row, row + 1)
        assert torch.equal(attend(q[part], k[part], v[part]), whole[part])


def test_products_are_taken_in_training_in_bf16_alone(monkeypatch):
    def chosen(dtype, trains=True, queries=8):
        q, k, v, _ = draw((1, 1, queries, 512, 8), dtype)
        return takes_products(q.requires_grad_(trains), k, v)

    assert chosen(torch.bfloat16) and chosen(torch.bfloat16, queries=512)
    assert not chosen(torch.bfloat16, queries=513) and not chosen(torch.bfloat16, trains=False)
    assert not any(chosen(dtype) for dtype in (torch.float32, torch.float16, torch.float64))
    with torch.no_grad():
        assert not chosen(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v, _ = draw(SHAPES[0], torch.float32)
        y = attend(q.requires_grad_(), k, v)
    assert type(y.grad_fn).__name__ == "_PlainProductsBackward" and y.dtype == torch.bfloat16
    monkeypatch.setattr(attention, "bf16_cpu", lambda: False)
    assert not chosen(torch.bfloat16)


def test_a_compiled_graph_has_torch_s_own():
    q, k, v, _ = draw(SHAPES[0], torch.bfloat16)
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    y = compiled(q.requires_grad_(), k, v)
    assert torch.equal(y, F.scaled_dot_product_attention(q, k, v))

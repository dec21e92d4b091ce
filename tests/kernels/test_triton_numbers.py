"""The Triton kernels against what torch gives: on a GPU, or in Triton's interpreter on a CPU.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_triton_numbers.py

test_triton.py runs this so. Of the interpreter's own: it multiplies bfloat16 wrongly and cuts it
off where it is stored, so formats are float32 and float16 there.
"""

# ruff: noqa: E402
import os
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip(
        "no GPU here; in the interpreter test_triton.py runs it, in a process of its own",
        allow_module_level=True,
    )

from tests.int8.test_linear import case, emulated, relative
from tests.int8.test_linear import run as run_layer
from tuninglab.int8 import cross_entropy, rows
from tuninglab.int8.linear import Int8Linear
from tuninglab.kernels import compiled, gpu, triton_products, triton_rows
from tuninglab.kernels.triton_products import few_rows, int8_product
from tuninglab.savers import glu, norm

pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
STEP = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
FORMATS = list(STEP)[: 2 if INTERPRETED else 3]
SHAPES = {"rows": st.integers(1, 5), "columns": st.integers(1, 90)}
ANY = settings(deadline=None, max_examples=20, derandomize=True)
# Not one block wide, but several and a rest.
triton_rows.WIDEST = 32


@pytest.fixture(autouse=True, scope="module")
def served():
    """Interpreted, the CPU stands for the GPU: the dispatch chooses as it does there."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setattr(compiled, "library", lambda: None)
            patch.setattr(gpu, "KIND", "cpu")
            patch.setattr(gpu, "_missing", lambda: None)
        gpu._tried.cache_clear()
        assert gpu.passes_here(torch.device("cuda")) == ("Triton", gpu._tried()[1])
        assert gpu.serves(DEVICE)
        yield
    gpu._tried.cache_clear()


def numbers(*shape, dtype=torch.float32, seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (size * torch.randn(shape, generator=generator)).to(DEVICE, dtype)


def whole(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8).to(DEVICE)


def both(kernel, in_torch, *given):
    """What Triton gives and what torch gives."""
    got, wanted = kernel.launch(*given), in_torch(*given)
    return (got if isinstance(got, list) else [got]), (
        wanted if isinstance(wanted, tuple) else [wanted]
    )


def close(got, wanted, dtype, factor=1.0):
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    step = factor * STEP[dtype]
    torch.testing.assert_close(got, wanted, rtol=step, atol=step, equal_nan=True)


@ANY
@given(
    **SHAPES,
    dtype=st.sampled_from(FORMATS),
    scaled=st.booleans(),
    size=st.sampled_from([1e-4, 1.0, 1e4]),
    gap=st.integers(0, 3),
)
def test_rows_are_rounded_as_in_torch(rows: int, columns: int, dtype, scaled, size, gap):
    x = numbers(rows, columns + gap, dtype=dtype, size=size)[:, :columns]
    column = numbers(columns, seed=1).abs() if scaled else None
    (q, scale), (wanted, wanted_scale) = both(quantise, torch_quantise, x, column)
    assert torch.equal(scale, wanted_scale)
    # At a tie, and only there, by one.
    assert (q.int() - wanted.int()).abs().max() <= 1
    assert (q != wanted).sum() <= 0.03 * q.numel() + 1


quantise, torch_quantise = rows._QUANTISE, rows._quantise_rows


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_or_nothing_is_told(bad):
    x = numbers(4, 70)
    x[1, 69], x[2], x[3] = bad, 0, 1e-42
    (q, scale), (wanted, wanted_scale) = both(quantise, torch_quantise, x, None)
    torch.testing.assert_close(scale, wanted_scale, rtol=0, atol=0, equal_nan=True)
    assert scale[1].isnan() and scale[2:].tolist() == [0, 0]
    assert torch.equal(q[[0, 2, 3]], wanted[[0, 2, 3]])


@ANY
@given(**SHAPES, dtype=st.sampled_from(FORMATS), scaled=st.booleans(), turned=st.booleans())
def test_whole_numbers_are_scaled_as_in_torch(rows: int, columns: int, dtype, scaled, turned):
    row = numbers(rows).abs() / 1000
    column = numbers(columns, seed=1).abs() if scaled else None
    sums = whole(columns, rows).t().int() * 99 if turned else whole(rows, columns).int() * 99
    for kernel, given_numbers in ((scale_int8, whole(rows, columns)), (scale_sums, sums)):
        (got,), (wanted,) = both(kernel, torch_scale, given_numbers, row, column, dtype)
        assert torch.equal(got, wanted)


scale_int8, scale_sums, torch_scale = rows._SCALE_INT8, rows._SCALE_SUMS, rows._scale_rows


@ANY
@given(**SHAPES, dtype=st.sampled_from(FORMATS), size=st.sampled_from([0.0, 1e-3, 1.0, 100.0]))
def test_norms_and_their_gradients(rows: int, columns: int, dtype, size):
    x, weight = numbers(rows, columns, dtype=dtype, size=size), numbers(columns, seed=1)
    (y, inverse), (wanted, wanted_inverse) = both(norm._NORM, norm._torch_normed, x, weight, 1e-6)
    torch.testing.assert_close(inverse, wanted_inverse, rtol=2e-6, atol=0)
    close(y, wanted, dtype)
    grad = numbers(rows, columns, dtype=dtype, seed=2, size=size)
    (dx,), (wanted,) = both(norm._GRAD, norm._torch_normed_grad, grad, x, inverse, weight)
    # Of one column nothing is left but the difference of what is nearly equal.
    close(dx, wanted, dtype, 1 + float(inverse.max()))


@ANY
@given(**SHAPES, dtype=st.sampled_from(FORMATS), activation=st.integers(0, 2), by=st.booleans())
def test_gated_activations_and_their_gradients(rows: int, columns: int, dtype, activation, by):
    e = numbers(rows, columns, dtype=dtype, size=4)
    u = numbers(rows, columns, dtype=dtype, seed=1) if by else None
    (y,), (wanted,) = both(glu._GATED, glu._torch, activation, e, u)
    close(y, wanted, dtype, 4)
    grad, q, scale = (
        numbers(rows, columns, dtype=dtype, seed=2),
        whole(rows, columns),
        numbers(rows),
    )
    scale = scale.abs() / 30
    p, p_scale = (whole(rows, columns, seed=3), scale.flip(0)) if by else (None, None)
    given_rows = (activation, grad, q, scale, p, p_scale)
    for got, wanted in zip(*both(glu._GRAD, glu._torch_grad, *given_rows), strict=True):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            close(got, wanted, dtype, 4)


@ANY
@given(**SHAPES, size=st.sampled_from([1e-6, 1e-3, 0.1]), seed=st.integers(0, 9))
def test_cross_entropy_and_its_probabilities(rows: int, columns: int, size, seed):
    sums = whole(rows, columns, seed=seed).int() * 50
    row, column = numbers(rows).abs() * size + 1e-9, numbers(columns, seed=1).abs() + 0.1
    target = torch.arange(rows, device=DEVICE) % columns
    got, wanted = both(cross_entropy._LOSS, cross_entropy._torch, sums, row, column, target)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(got[3], wanted[3], rtol=1e-4, atol=0)
    back, exact = (coarse.double() + fine.double() / 254 for _, coarse, fine, _ in (got, wanted))
    assert (back - exact).abs().max() < 0.02


def test_cross_entropy_of_nan_is_nan():
    sums, column = whole(3, 40).int(), torch.ones(40, device=DEVICE)
    row = torch.tensor([1.0, float("nan"), 1.0], device=DEVICE)
    target = torch.zeros(3, dtype=torch.long, device=DEVICE)
    loss, _, _, step = cross_entropy._LOSS.launch(sums, row, column, target)
    assert loss.isnan().tolist() == step.isnan().tolist() == [False, True, False]
    column[7] = float("nan")
    loss, _, _, step = cross_entropy._LOSS.launch(sums, row, column, target)
    assert loss.isnan().all() and step.isnan().all()


@ANY
@given(
    m=st.integers(0, 140),
    n=st.integers(1, 140),
    k=st.integers(1, 140),
    rank=st.sampled_from([0, 1, 8, 70]),
    turned=st.booleans(),
    dtype=st.sampled_from(FORMATS),
)
def test_products_of_both_ways(m, n, k, rank, turned, dtype):
    left, right = whole(m, k), whole(n, k, seed=1).t() if turned else whole(k, n, seed=1)
    sums = left.long() @ right.long()
    assert torch.equal(int8_product(left, right).long(), sums)
    row, column = numbers(m).abs() / 1000, numbers(n, seed=2).abs() if turned else None
    low, up = numbers(m, rank, dtype=dtype), numbers(rank, n, dtype=dtype, seed=3)
    y = int8_product(left, right, row, column, dtype, (low, up, 0.5) if rank else None)
    wanted = sums.double() * row.double()[:, None] * (1 if column is None else column.double())
    wanted += 0.5 * low.double() @ up.double()
    assert y.dtype == dtype and relative(y, wanted) < STEP[dtype]


@ANY
@given(
    rows=st.integers(1, 16),
    out=st.integers(1, 40),
    size=st.sampled_from([1, 64, 129, 300]),
    dtype=st.sampled_from(FORMATS),
    int8=st.booleans(),
    biased=st.booleans(),
)
def test_few_rows_against_float64(rows: int, out, size, dtype, int8, biased):
    x = numbers(rows, size, dtype=dtype)
    weight = whole(out, size) if int8 else numbers(out, size, dtype=dtype, seed=1)
    scale = numbers(out, seed=2).abs() / 100 if int8 else None
    bias = numbers(out, dtype=dtype, seed=3) if biased else None
    wanted = x.double() @ weight.double().t() * (1 if scale is None else scale.double())
    wanted += 0 if bias is None else bias.double()
    assert relative(few_rows(x, weight, scale, bias), wanted) < 2 * STEP[dtype]


def layer_case(rows, out, into, bias=False, dtype=torch.float32):
    """An int8 layer, tokens, LoRA's A and B, and a gradient."""
    linear, x, a, b, grad = case(rows, out, into, bias)
    layer = Int8Linear.of(linear).to(DEVICE)
    return layer, *(t.to(DEVICE, dtype) for t in (x, a, b, grad))


@pytest.fixture
def launched(monkeypatch):
    """Names of the Triton functions that were launched."""
    seen = []
    for module, name in ((gpu, "launch_rows"), (triton_products, "int8_product")):
        function = getattr(module, name)

        def recording(*given, function=function, name=name, **named):
            seen.append(given[0] if name == "launch_rows" else name)
            return function(*given, **named)

        monkeypatch.setattr(module, name, recording)
    return seen


@pytest.mark.parametrize("rows", [1, 3, 33])
def test_a_layer_with_lora_computes_the_stated_algorithm(rows, launched):
    layer, x, a, b, grad = layer_case(rows, 70, 44, bias=True)
    launched.clear()  # the weight was rounded, too
    got = run_layer(layer, x, a, b, 0.5, grad)
    for value, expected in zip(got, emulated(layer, x, a, b, 0.5, grad), strict=True):
        assert relative(value, expected) < 1e-5
    # Forward, backward, and x made float again for dA: nothing beside.
    ways = ["quantise_rows", "int8_product"]
    assert launched == [*ways, "scale_int8", *ways]


@pytest.mark.parametrize("dtype", FORMATS[1:])
@pytest.mark.parametrize(("rows", "out", "into"), [(3, 70, 44), (200, 256, 512)])
def test_a_layer_of_16_bits_is_as_exact_as_its_format(rows, out, into, dtype):
    if INTERPRETED and rows > 3:
        pytest.skip("too slow to interpret")
    layer, x, a, b, grad = layer_case(rows, out, into, dtype=dtype)
    got = run_layer(layer, x, a, b, 0.5, grad)
    for value, expected in zip(got, emulated(layer, x, a, b, 0.5, grad), strict=True):
        assert value.dtype == dtype and relative(value, expected) < 2 * STEP[dtype]


def test_few_tokens_without_a_gradient_are_not_rounded(launched):
    layer, x = Int8Linear.of(nn.Linear(48, 40)).to(DEVICE), numbers(2, 3, 48)
    launched.clear()
    with torch.no_grad():
        y = layer(x)
        weight = layer.weight.double() * layer.weight_scale.double()[:, None]
        assert relative(y, x.double() @ weight.t() + layer.bias.double()) < 1e-6
        assert launched == []
        layer(numbers(17, 48))
        assert launched == ["quantise_rows", "int8_product"]


def test_the_loss_of_an_int8_head(launched):
    layer, hidden = Int8Linear.of(nn.Linear(32, 75, bias=False)).to(DEVICE), numbers(6, 32)
    targets = torch.arange(6, device=DEVICE) * 11
    loss, grad = layer.loss_and_grad(hidden, targets)
    assert launched.count("int8_product") == 3 and launched.count("cross_entropy") == 1
    state = hidden.clone().requires_grad_()
    wanted = F.cross_entropy(state @ layer.dequantised().t(), targets, reduction="sum")
    wanted.backward()
    assert relative(loss, wanted) < 0.01 and relative(grad, state.grad) < 0.03


def test_savers_go_through_triton(launched):
    class Norm(nn.Module):
        weight, variance_epsilon = nn.Parameter(numbers(32).abs(), requires_grad=False), 1e-6

    x = numbers(4, 32).requires_grad_()
    glu.SavingActivation(2)(norm.SavingRMSNorm(Norm())(x)).sum().backward()
    y = x.detach().requires_grad_()
    F.gelu(norm._torch_normed(y, Norm.weight, 1e-6)[0]).sum().backward()
    assert relative(x.grad, y.grad) < 0.02
    forward, backward = ["rms_norm", "quantise_rows", "gated"], ["gated_grad", "rms_norm_grad"]
    assert launched == forward + backward


def test_float64_and_compiled_graphs_stay_with_torch(launched):
    rows.quantise_rows(numbers(3, 8, dtype=torch.float64))
    torch.compile(rows._quantise_rows, backend="eager")(numbers(3, 8), None)
    assert launched == []


def test_what_does_not_fit_is_refused():
    q, row, x = whole(3, 8), numbers(3), numbers(2, 8)
    misfits = ((q.int(), q.t()), (q[:, ::2], q.t()), (q, whole(7, 3)), (q, q.t(), row[:2]))
    for misfit in misfits:
        with pytest.raises(ValueError, match="expected"):
            int8_product(*misfit)
    with pytest.raises(ValueError, match="17 rows, at most 16"):
        few_rows(numbers(17, 8), whole(4, 8), numbers(4))
    with pytest.raises(ValueError, match="weight is torch.int8"):
        few_rows(x, whole(4, 8))
    with pytest.raises(ValueError, match="kernel rms_norm: weight is"):
        norm._NORM.launch(x, numbers(7), 1e-6)


def milliseconds(work):
    """Of a call on the GPU, the lowest of 20."""
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return min(times)


@pytest.mark.rate
@pytest.mark.skipif(INTERPRETED, reason="of the interpreter a clock says nothing")
@pytest.mark.parametrize("tokens", [512, 2048, 16384])
def test_int8_products_are_faster_than_those_of_16_bits(tokens):
    q, weight, scale = whole(tokens, 4096), whole(4096, 4096, seed=1), numbers(4096).abs()
    x, dense = numbers(tokens, 4096, dtype=torch.bfloat16), weight.bfloat16()
    row, taken = numbers(tokens).abs(), {}
    for name, right, column in (("forward", weight.t(), scale), ("backward", weight, None)):
        ours = milliseconds(lambda r=right, c=column: int8_product(q, r, row, c, x.dtype))
        taken[name] = ours / milliseconds(
            lambda n=name: x @ (dense.t() if n == "forward" else dense)
        )
    print(f"{tokens} tokens: {taken} of the time of bfloat16")
    assert max(taken.values()) < 1


@pytest.mark.rate
@pytest.mark.skipif(INTERPRETED, reason="of the interpreter a clock says nothing")
@pytest.mark.parametrize("count", [1, 4, 16])
def test_few_rows_of_int8_are_faster_than_those_of_16_bits(count):
    x, weight = numbers(count, 4096, dtype=torch.bfloat16), whole(4096, 4096)
    dense, scale = weight.bfloat16(), numbers(4096).abs()
    theirs = milliseconds(lambda: F.linear(x, dense))
    taken = milliseconds(lambda: few_rows(x, weight, scale)) / theirs
    # Whether it should take the place of torch's own for bfloat16, too: to be read, not asserted.
    print(f"{count} rows: int8 {taken}, bf16 {milliseconds(lambda: few_rows(x, dense)) / theirs}")
    assert taken < 1

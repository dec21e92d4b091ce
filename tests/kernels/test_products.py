"""Products through oneDNN against float64 and against torch's own; wherever this torch has them."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tuninglab.kernels import products
from tuninglab.kernels.products import FastLinear, FrozenWithLora, faster, has_onednn, takes_onednn

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this torch has no such product")
SHAPES = ((7,), (2, 5), (3, 2, 4), (1,))


def layer(bias=True, n=33, k=20):
    torch.manual_seed(0)
    fast = nn.Linear(k, n, bias=bias).requires_grad_(False)
    fast.__class__ = FastLinear
    return fast


def taken(y):
    return type(y.grad_fn).__name__ == "_FrozenBackward"


def close(value, exact):
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gaps", [True, False])
def test_a_frozen_layer(shape, bias, gaps):
    fast = layer(bias)
    exact = nn.Linear(20, 33, bias=bias).double()
    exact.load_state_dict(fast.state_dict())
    x = torch.randn(*shape, 40)[..., ::2] if gaps else torch.randn(*shape, 20)
    grad = torch.randn(33, *shape).movedim(0, -1) if gaps else torch.randn(*shape, 33)
    mine, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    y = fast(mine)
    assert taken(y)
    y.backward(grad)
    exact(theirs).backward(grad.double())
    close(y, exact(theirs))
    close(mine.grad, theirs.grad)
    with torch.no_grad():
        close(fast(x), exact(theirs))


@needs_onednn
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_lora_is_one_node(shape, bias, first):
    fast, c = layer(bias), 0.7
    x, a, b = torch.randn(*shape, 20), torch.randn(4, 20), torch.randn(33, 4)
    grad = torch.randn(*shape, 33)

    def written_out(x, weight, bias, a, b, c):
        y = x @ weight.t() + c * ((x @ a.t()) @ b.t())
        return y if bias is None else y + bias

    results = []
    for function, dtype in ((FrozenWithLora.apply, torch.float32), (written_out, torch.float64)):
        # The first layer's x needs no gradient.
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (a, b, *[x] * (not first))]
        given = leaves[2] if not first else x.to(dtype)
        own = [None if t is None else t.to(dtype) for t in (fast.weight, fast.bias)]
        y = function(given, *own, *leaves[:2], c)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))])
    for value, exact in zip(*results, strict=True):
        close(value, exact)


@needs_onednn
def test_a_frozen_layer_keeps_nothing_but_its_weight():
    fast, kept = layer(), []
    x = torch.randn(6, 20, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        fast(x)
    assert [tensor.data_ptr() for tensor in kept] == [fast.weight.data_ptr()]


def test_it_is_the_plain_layer_to_all_who_ask():
    fast = layer()
    plain = nn.Linear(20, 33)
    assert repr(fast) == repr(plain) and isinstance(fast, nn.Linear)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(3, 20)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(again(x), fast(x)) and type(again) is FastLinear


@needs_onednn
def test_elsewhere_it_computes_as_the_plain_layer():
    x = torch.randn(3, 20, requires_grad=True)
    fast = layer()
    assert taken(fast(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(x).dtype == torch.bfloat16
    compiled = torch.compile(fast, backend="eager", fullgraph=True)(x)
    assert torch.equal(compiled, nn.Linear.forward(fast, x)) and not taken(compiled)
    exported = torch.export.export(fast, (x,)).module()(x)
    assert torch.equal(exported, compiled)
    assert not taken(copy.deepcopy(fast).double()(x.double()))
    assert not takes_onednn(x.to("meta"), fast.weight) and fast(x[:0]).shape == (0, 33)
    for part in ("bias", "weight"):
        trained = layer()
        getattr(trained, part).requires_grad_()
        trained(x).sum().backward()
        assert getattr(trained, part).grad is not None


def test_what_is_faster_is_tried(monkeypatch):
    clock = iter(range(1000))
    costs = {"_slow": 3, "_quick": 1}

    def costing(name):
        def product(*_):
            for _ in range(costs[name]):
                next(clock)

        return product

    monkeypatch.setattr(products.time, "perf_counter", lambda: next(clock))
    for mine, theirs, wins in (("_quick", "_slow", True), ("_slow", "_quick", False)):
        monkeypatch.setattr(products, "multiply", costing(mine))
        monkeypatch.setattr(products.F, "linear", costing(theirs))
        products._times.cache_clear()
        won, reason = faster([(8, 8), (16, 8)])
        assert won is wins and f"{(1 + costs[mine]) / (1 + costs[theirs]):.2f}" in reason
        # Once a process: the clock stands still from here.
        before = next(clock)
        assert faster([(16, 8), (8, 8)]) == (won, reason) and next(clock) == before + 1
    products._times.cache_clear()


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, RuntimeError])
def test_a_torch_without_it_is_known(error, monkeypatch):
    def missing(*_):
        raise error

    monkeypatch.setattr(products, "multiply", missing)
    assert not has_onednn()

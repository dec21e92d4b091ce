import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

from tuninglab.int8.rows import product, quantise_rows
from tuninglab.kernels.shapes import Shapes, current_shapes, without_numbers


def test_floats_have_no_numbers_and_ids_have():
    with Shapes():
        x, ids = torch.zeros(3, 5), torch.arange(6).view(2, 3)
        chosen = ids > 2
        assert isinstance(x, FakeTensor) and x.device.type == "cpu"
        assert chosen.sum().item() == 3
        # A mask that chooses decides the shape of floats.
        rows = torch.zeros(2, 3, 7)[chosen]
        assert rows.shape == (3, 7) and isinstance(rows, FakeTensor)
        rows[torch.tensor([True, False, True])] = torch.ones(2, 7)
        table = nn.functional.embedding(ids, torch.zeros(9, 4))
        assert table.shape == (2, 3, 4) and isinstance(table, FakeTensor)


def test_a_number_of_a_float_cannot_be_read():
    with Shapes(), pytest.raises(DataDependentOutputException):
        bool(torch.zeros(3).sum() > 0)


def test_kernels_give_what_they_would_give():
    x, weight = torch.randn(6, 32), torch.randn(8, 32)
    q, scale = quantise_rows(x)
    w, by = quantise_rows(weight)
    real = product(q, scale, w.t(), by, torch.bfloat16)
    with Shapes():
        q, scale = quantise_rows(torch.zeros(6, 32))
        w, by = quantise_rows(torch.zeros(8, 32))
        made = product(q, scale, w.t(), by, torch.bfloat16)
    assert (q.dtype, q.shape, scale.shape) == (torch.int8, (6, 32), (6,))
    assert (made.shape, made.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_is_given_back_as_it_was(device):
    with torch.device(device):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    # One module under two names, and one weight in two modules.
    model.append(model[0])
    before = [id(t) for t in [*model.parameters(), *model.buffers()]]
    with Shapes() as shapes, without_numbers(model, shapes):
        assert model[1].weight is model[0].weight
        model(torch.zeros(3, 4)).sum().backward()
        assert model[0].weight.grad is not None
    assert [id(t) for t in [*model.parameters(), *model.buffers()]] == before
    assert all(p.grad is None for p in model.parameters())
    assert not any(isinstance(p, FakeTensor) for p in model.parameters())


def test_it_ends_where_something_goes_wrong():
    with pytest.raises(ZeroDivisionError), Shapes():
        1 / 0  # noqa: B018
    assert current_shapes() is None
    assert not isinstance(torch.zeros(1), FakeTensor)

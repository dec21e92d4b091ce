import pytest
import torch
from torch import nn

from tuninglab.models.weights import bytes_held, is_finite, storage_key


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shared_storages_count_once(device):
    with torch.device(device):
        model = nn.ModuleDict({"table": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
        apart = bytes_held(model.parameters())
        model["head"].weight = model["table"].weight
        tied = [model["table"].weight, model["head"].weight, torch.zeros(7, dtype=torch.int8)]
    assert (apart, bytes_held(tied)) == (2 * 5 * 3 * 4, 5 * 3 * 4 + 7)
    assert bytes_held([]) == 0


def test_a_view_keeps_its_whole_storage():
    base = torch.zeros(10, 2)
    assert storage_key(base[3:5]) == storage_key(base.T) != storage_key(base.clone())
    assert bytes_held([base[3:5], base.T]) == bytes_held([base[3:5]]) == 80


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_seen_wherever_it_is(dtype, number):
    for place in (0, 77, 4098):
        tensor = torch.full((4099,), torch.finfo(dtype).max, dtype=dtype)
        assert is_finite(tensor)
        tensor[place] = number
        assert not is_finite(tensor) and not is_finite(tensor.view(1, -1, 1).expand(2, -1, 3))
    assert is_finite(torch.zeros(0, 3, dtype=dtype))


def test_whole_numbers_are_finite():
    for dtype in (torch.int8, torch.uint8, torch.bool, torch.int64):
        assert is_finite(torch.ones(5, dtype=dtype))

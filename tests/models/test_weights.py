import pytest
import torch
from torch import nn

from tuninglab.models.weights import bytes_held, storage_key


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

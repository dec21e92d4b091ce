from torch import nn

from tuninglab.inspection.cost import Cost
from tuninglab.inspection.shared_cost import shared
from tuninglab.models.gated_cross_attention import FlamingoLayer


def model():
    layers = nn.ModuleList(FlamingoLayer(None, nn.Linear(8, 8, bias=False)) for _ in range(4))
    whole = nn.ModuleDict({"layers": layers, "head": nn.Linear(8, 16, bias=False)})
    whole.requires_grad_(False)
    layers[0].requires_grad_(True)
    return whole


COST = Cost(
    {"process": 1000, "weights": 4 * 256 + 512, "optimizer": 512}, {"a": 70}, {"fp32": 1}, 2
)


def test_ddp_keeps_all_and_exchanges_gradients():
    found = shared(COST, model(), "ddp", 4)
    assert found.held == COST.held
    assert found.step == {"a": 70, "gradient buckets": 256}
    # A ring of four sends each byte 2 x 3/4 times.
    assert found.sent == 2 * 256 * 3 // 4


def test_fsdp2_holds_a_share_and_two_blocks():
    found = shared(COST, model(), "fsdp2", 4)
    assert found.held == {"process": 1000, "weights": 384, "optimizer": 128}
    assert found.step == {"a": 70, "gathered weights": 2 * 256 + 512}
    assert found.sent == (2 * 4 * 256 + 512 + 256) * 3 // 4
    assert found.peak == 1000 + 384 + 128 + 70 + 1024

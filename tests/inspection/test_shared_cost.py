from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tuninglab.inspection.cost import Cost
from tuninglab.inspection.shared_cost import shared
from tuninglab.models.gated_cross_attention import FlamingoLayer

# Bytes of the model below: layers, root, vision tower and Perceiver; and of one layer.
LAYERS, ROOT, TOWER, PERCEIVER, LAYER = 4 * 256, 512, 2 * 64 + 128, 64, 256
WHOLE = LAYERS + ROOT + TOWER + PERCEIVER


class TowerLayer(GradientCheckpointingLayer):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4, bias=False)


def model():
    layers = nn.ModuleList(FlamingoLayer(None, nn.Linear(8, 8, bias=False)) for _ in range(4))
    tower = {"layers": nn.ModuleList(TowerLayer() for _ in range(2))}
    tower["patches"] = nn.Linear(4, 8, bias=False)
    parts = {"layers": layers, "head": nn.Linear(8, 16, bias=False)}
    parts["vision_encoder"] = nn.ModuleDict(tower)
    parts["perceiver"] = nn.Linear(8, 2, bias=False)
    whole = nn.ModuleDict(parts)
    whole.requires_grad_(False)
    layers[0].requires_grad_(True)
    return whole


COST = Cost(
    {"process": 1000, "workspace": 30, "weights": WHOLE, "optimizer": 512},
    {"a": 70, "gradients": 256, "AdamW": 100},
    {"fp32": 1},
    2,
)


def test_ddp_keeps_all_and_exchanges_gradients():
    found = shared(COST, model(), "ddp", 4, passes=3)
    assert found.held == COST.held
    assert found.step == {**COST.step, "gradient buckets": 256}
    # A ring of four sends each byte 2 x 3/4 times, after the last pass.
    assert found.sent == 2 * 256 * 3 // 4


def test_fsdp2_holds_a_share_and_two_blocks():
    found = shared(COST, model(), "fsdp2", 4)
    assert found.held == {
        **{"process": 1000, "workspace": 30},
        **{"weights": WHOLE // 4, "optimizer": 128},
    }
    # Largest together: two layers, with the root.
    gathered = ROOT + 2 * LAYER
    assert found.step == {"a": 70, "gradients": 64, "AdamW": 25, "gathered weights": gathered}
    # docs/scaling.md: 2 (L + R) + V received, G scattered.
    sent = (2 * (LAYERS + ROOT) + TOWER + PERCEIVER + 256) * 3 // 4
    assert found.sent == sent
    assert shared(COST, model(), "fsdp2", 4, passes=3).sent == 3 * sent


def test_fsdp2_gathers_again_what_a_backward_pass_goes_through():
    perceiver, tower = model(), model()
    perceiver["perceiver"].requires_grad_(True)
    found = shared(COST, perceiver, "fsdp2", 4)
    assert found.sent == (2 * (LAYERS + ROOT + PERCEIVER) + TOWER + 256 + PERCEIVER) * 3 // 4
    # It reaches a tower through the frozen Perceiver.
    tower["vision_encoder"]["patches"].requires_grad_(True)
    assert shared(COST, tower, "fsdp2", 4).sent == (2 * WHOLE + 256 + 128) * 3 // 4


def test_a_pass_without_gradients_gathers_once_and_exchanges_nothing():
    assert shared(COST, model(), "fsdp2", 4, backward=False).sent == WHOLE * 3 // 4
    found = shared(COST, model(), "ddp", 4, backward=False)
    assert (found.sent, found.step) == (0, COST.step)

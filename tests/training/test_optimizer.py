import math

import pytest
import torch

from tuninglab.adapters.lora import tune
from tuninglab.config.tuning import TuningConfig
from tuninglab.training.optimizer import make_optimizer, make_schedule, parameter_groups


def names_by_group(model) -> dict[str, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 1e-3, 0.1, 10.0)
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}


def test_groups_hold_each_trained_parameter_once(tiny_flamingo):
    config = TuningConfig(train_perceiver=True, train_new_tokens=True, modules_to_save=["norm"])
    model = tune(tiny_flamingo(), config)
    groups = names_by_group(model)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(name for names in groups.values() for name in names) == sorted(trained)
    gates = {n for n in trained if n.endswith("_gate")}
    assert groups["gates"] == gates and len(gates) == 2
    blocks = {n for n in trained if ".gated_cross_attn_layer." in n and "_gate" not in n}
    # Norms of the blocks are vectors and do not decay.
    assert groups["decayed"] == {n for n in blocks if not n.endswith(("norm.weight", "norm.bias"))}
    assert all(".lora_" in n for n in groups["decayed"])


def test_rates_and_decay(tiny_flamingo):
    model = tune(tiny_flamingo(), TuningConfig(train_cross_attention=True))
    groups = {group["name"]: group for group in make_optimizer(model, 1e-3, 0.1, 7.0).param_groups}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "plain": 0.0,
        "decayed": 0.1,
        "gates": 0.0,
    }
    assert groups["gates"]["lr"] == pytest.approx(7e-3)
    assert groups["plain"]["lr"] == groups["decayed"]["lr"] == 1e-3


def test_a_model_without_blocks_has_one_group():
    assert [group["name"] for group in parameter_groups(torch.nn.Linear(2, 2), 1, 1)] == ["plain"]


def by_hand(name: str, step: int, total: int, warmup: int) -> float:
    """Share of the peak rate at a step, from the definitions."""
    if step < warmup:
        return step / warmup
    share = (step - warmup) / (total - warmup)
    return {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[
        name
    ]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedule_is_its_definition(name, warmup):
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([parameter], lr=0.5)
    schedule = make_schedule(optimizer, name, 10, warmup)
    for step in range(10):
        assert schedule.get_last_lr()[0] == pytest.approx(0.5 * by_hand(name, step, 10, warmup))
        optimizer.step()
        schedule.step()


def test_warmup_defaults_to_three_percent():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = make_schedule(optimizer, "constant", 200)
    rates = []
    for _ in range(8):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1])


def test_parts_with_rates_of_their_own(tiny_flamingo):
    """Each parameter in the group of its part, at its rate; the others as they were."""
    parts = {"lm": 3e-5, "cross_attention": 5e-4, "vision": 1e-5, "embeddings": 2e-6}
    tuning = TuningConfig(
        train=["vision", "perceiver", "embeddings"], part_learning_rates={**parts, "gates": 0.5}
    )
    model = tune(tiny_flamingo(), tuning)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_optimizer(model, 1e-3, 0.1, 10.0, tuning.part_learning_rates).param_groups
    found = {names[id(p)]: group for group in groups for p in group["params"]}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(found) == sorted(trained)
    assert sum(len(group["params"]) for group in groups) == len(trained)
    for name, group in found.items():
        if name.endswith("_gate"):
            expected = ("gates", 0.5, 0.0)
        elif "gated_cross_attn_layer" in name:
            expected = ("cross_attention decayed", 5e-4, 0.1)
        elif "vision_encoder" in name:
            expected = ("vision", 1e-5, 0.0)
        elif "embed_tokens" in name:
            expected = ("embeddings", 2e-6, 0.0)
        elif "perceiver" in name:
            expected = ("plain", 1e-3, 0.0)
        else:
            expected = ("lm", 3e-5, 0.0)
        assert (group["name"], group["lr"], group["weight_decay"]) == expected, name

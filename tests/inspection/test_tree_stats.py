import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tuninglab.adapters.lora import tune
from tuninglab.config.tuning import DEFAULT_TARGET_MODULES, TuningConfig
from tuninglab.inspection.module_tree import branches_below
from tuninglab.inspection.presets import build_preset
from tuninglab.inspection.tree_stats import (
    Census,
    columns,
    human_bytes,
    human_count,
    lora_patterns,
    totals,
    tree_json,
)


def stats_below(model, patterns=()):
    """Statistics of the first line below the root."""
    return Census(model, patterns).of(branches_below(model)[0].modules)


def test_merged_modules_count_together():
    model = nn.Sequential(*(nn.Linear(3, 2, bias=False) for _ in range(4)))
    stats = stats_below(model)
    assert (stats.modules, stats.each, stats.parameters, stats.bytes) == (4, 6, 24, 96)
    assert columns(stats) == ("24", "(4 x 6)", "trainable", "96 B", "float32", "")


def test_number_formats_and_what_trains():
    model = nn.ModuleDict({"block": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)])})
    model["block"][0].to(torch.float16).requires_grad_(False)
    stats = stats_below(model)
    assert stats.formats == {"float16": 20, "float32": 16}
    assert (stats.trainable, stats.trainable_tensors, stats.bytes) == (16, 1, 104)
    assert columns(stats)[2:5] == ("44.4 % trainable", "104 B", "float16 + float32")


def test_quantised_weights_count_whether_parameter_or_buffer():
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.zeros(4, 8, dtype=torch.int8), requires_grad=False)
    layer.register_buffer("weight_of_another", torch.zeros(2, 8, dtype=torch.int8))
    layer.register_buffer("mask", torch.zeros(2, 8, dtype=torch.bool))
    # bitsandbytes' 4-bit parameters: two weights a byte, marked so.
    packed = nn.Parameter(torch.zeros(16, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_type, packed.bnb_quantized = "nf4", True
    layer.packed = packed
    stats = stats_below(nn.ModuleDict({"layer": layer}))
    assert stats.formats == {"int8": 48, "nf4": 32}
    assert stats.bytes == 64


def test_shared_tensors_count_once_and_say_whose_they_are():
    model = nn.ModuleDict({"table": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["table"].weight
    # Equal content merges; together they hold 15 parameters and not 30.
    assert columns(stats_below(model))[:2] == ("15", "(15)")
    census = Census(model)
    assert columns(census.of((model["head"],)))[-1] == "shared with table"
    assert columns(census.of((model["table"],)))[-1] == ""
    assert census.of((model,)).parameters == 15


@pytest.mark.parametrize("way", ["list", "tuning", "regex"])
def test_which_lora_pattern_matched(way):
    model = build_preset("embedded")
    with torch.device("meta"):
        if way == "tuning":
            tuned = tune(model, TuningConfig())
        else:
            names = list(DEFAULT_TARGET_MODULES) if way == "list" else r".*\.(to_q|ff\.[13])"
            tuned = get_peft_model(model, LoraConfig(target_modules=names))
    patterns = lora_patterns(tuned)
    assert set(patterns) == ({names} if way == "regex" else set(DEFAULT_TARGET_MODULES))
    block = model.gated_blocks[0]
    census = Census(tuned, patterns)
    assert census.of((block.attn.to_q, block.ff[1], block.ff[3])).lora == (
        (r".*\.(to_q|ff\.[13])",) if way == "regex" else ("to_q", "ff.1", "ff.3")
    )
    assert census.of((block.attn,)).lora == ()
    assert lora_patterns(block) == []


def test_figures_for_people():
    assert [human_count(n) for n in (7, 65_536, 139_476_994, 8_220_454_928)] == [
        *("7", "65.5 k"),
        *("139.5 M", "8.22 B"),
    ]
    assert [human_bytes(n) for n in (7, 65_536, 278_953_988, 2**34)] == [
        *("7 B", "64.0 KiB"),
        *("266.0 MiB", "16.0 GiB"),
    ]


def test_totals_of_openflamingo_9b():
    model = build_preset("openflamingo-9b")
    with torch.device("meta"):
        tuned = tune(model, TuningConfig())
    line = totals(Census(tuned).of((tuned,)))
    # 23,461,888 of LoRA and 16 gates; 8,220,454,928 of the base.
    assert line == (
        "total: 8,243,916,816 parameters (8.24 B), 23,461,904 trainable (0.285 %) in 352 tensors, "
        "15.4 GiB (float16 8.22 B, float32 23.5 M)"
    )
    nothing = nn.GELU()
    assert totals(Census(nothing).of((nothing,))).startswith("total: 0 parameters")


def test_almost_all_is_not_all():
    model = nn.ModuleDict({"most": nn.Linear(100, 100), "rest": nn.Linear(2, 2)})
    model["rest"].requires_grad_(False)
    assert "(> 99 %)" in totals(Census(model).of((model,)))


def test_json_nests_and_adds_up():
    model = nn.ModuleList(
        nn.ModuleDict({"norm": nn.LayerNorm(4), "act": nn.GELU(), "out": nn.Linear(4, 2)})
        for _ in range(2)
    )
    model[1]["out"].to(torch.bfloat16)
    tree = json.loads(json.dumps(tree_json(model, branches_below(model), Census(model))))
    assert (tree["names"], tree["class"], tree["count"]) == (["root"], "ModuleList", 36)
    (layers,) = tree["children"]
    assert (layers["names"], layers["modules"], layers["parameters"]) == (["0", "1"], 2, [])
    norm, out = layers["children"]
    assert sum(child["count"] for child in (norm, out)) == layers["count"] == tree["count"]
    assert out["names"] == ["out"] and out["modules"] == 2 and out["children"] == []
    assert out["formats"] == {"float32": 10, "bfloat16": 10}
    assert out["parameters"][0] == {
        "name": "weight",
        "shape": [2, 4],
        "dtype": "float32 + bfloat16",
        "trainable": True,
    }
    assert norm["parameters"][1]["name"] == "bias" and norm["bytes"] == 64

"""Two adapters and their base in one process, against each of them loaded alone."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.adapters.test_saving import BRIDGE, logits, tuned
from tuninglab.adapters.base_format import left_in_float, quantization_config
from tuninglab.adapters.int8_lora import Int8LoraLinear
from tuninglab.adapters.saving import WEIGHTS_NAME, load_adapter, save_adapter
from tuninglab.adapters.switching import switch, without_adapter
from tuninglab.config.tuning import TuningConfig
from tuninglab.errors import UserError
from tuninglab.models.build import load_flamingo

FP32, BF16 = torch.float32, torch.bfloat16
COLOUR = {"r": 2, "lora_target_modules": ["q_proj", "to_q", "ff.1"]}
SHAPE = {"r": 5, "lora_alpha": 3, "lora_target_modules": ["v_proj", "to_q", "down_proj"]}


def state(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def gates(model):
    return {name: value for name, value in state(model).items() if name.endswith("_gate")}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def make_pair(tiny_flamingo, tmp_path):
    """A function (settings of two adapters, base, precision) -> a function that makes the base,
    folders of the two by name, and the logits of each loaded alone, None being the base."""

    def make(colour=COLOUR, shape=SHAPE, base="plain", dtype=torch.float32):
        folders, alone = {}, {None: logits(tiny_flamingo(base).to(dtype))}
        for name, settings, shift in (("colour", colour, 1.0), ("shape", shape, -2.0)):
            model = tuned(tiny_flamingo(base), **settings)
            for key, parameter in model.named_parameters():
                if key.endswith("_gate"):
                    parameter.data += shift
            model.get_base_model().config.media_mode = {"shape": "next-v1"}.get(name, "previous")
            folders[name] = tmp_path / name
            save_adapter(model, folders[name])
            alone[name] = logits(load_adapter(tiny_flamingo(base).to(dtype), folders[name]))
        return lambda: tiny_flamingo(base).to(dtype), folders, alone

    return make


@pytest.mark.parametrize(
    ("colour", "shape", "dtype"),
    [
        (COLOUR, SHAPE, FP32),
        (COLOUR, SHAPE, BF16),
        (COLOUR, {**SHAPE, **BRIDGE, "lora_target_modules": ["v_proj"]}, FP32),
        ({**COLOUR, **BRIDGE, "lora_target_modules": ["v_proj"]}, SHAPE, BF16),
        ({**COLOUR, "train_new_tokens": True}, SHAPE, FP32),
        (COLOUR, {**SHAPE, "train_new_tokens": True}, BF16),
        ({**COLOUR, "modules_to_save": ["mlp"]}, {**SHAPE, "modules_to_save": ["lm_head"]}, FP32),
        ({**COLOUR, "train_gates": False}, SHAPE, FP32),
        ({**COLOUR, "use_dora": True}, {**SHAPE, "train": ["vision"], "use_dora": True}, FP32),
        (COLOUR, {**SHAPE, "use_dora": True, "rank_pattern": {"to_q": 2}}, BF16),
    ],
    ids=[
        "gates",
        "bf16",
        "bridge 2nd",
        "bridge 1st",
        "tokens 1st",
        "tokens",
        "modules",
        "gateless",
        "dora and tower",
        "dora",
    ],
)
def test_there_and_back_and_to_the_base(make_pair, colour, shape, dtype):
    make_base, folders, alone = make_pair(colour, shape, dtype=dtype)
    assert not torch.equal(alone["colour"], alone["shape"])
    assert not torch.equal(alone["colour"], alone[None])
    model = load_adapter(make_base(), folders["colour"], "colour")
    assert torch.equal(logits(model), alone["colour"])
    before = {n: t for n, t in state(model).items() if ".colour" in n}
    model = load_adapter(model, folders["shape"], "shape")
    # The second is on as soon as it is loaded.
    assert torch.equal(logits(model), alone["shape"])
    for name in ("colour", None, "shape", None, "colour", "shape", "shape", "colour"):
        switch(model, name)
        assert torch.equal(logits(model), alone[name])
        mode = {"shape": "next-v1"}.get(name, "previous")
        assert model.get_base_model().config.media_mode == mode
    after = state(model)
    assert before and all(torch.equal(after[name], value) for name, value in before.items())


def test_tied_tables_and_the_base_in_between(make_pair):
    make_base, folders, alone = make_pair({**COLOUR, "modules_to_save": ["lm_head"]}, base="tied")
    model = load_adapter(make_base(), folders["colour"], "colour")
    switch(model, None)
    # Loaded while the base is on.
    load_adapter(model, folders["shape"], "shape")
    for name in ("shape", "colour", None):
        switch(model, name)
        assert torch.equal(logits(model), alone[name])


def test_only_our_way_to_the_base_takes_the_gates_along(make_pair):
    make_base, folders, alone = make_pair()
    model = load_adapter(make_base(), folders["colour"])
    tuned_gates = gates(model)
    with without_adapter(model) as base:
        assert base is model
        assert torch.equal(logits(model), alone[None])
        assert not equal(gates(model), tuned_gates)
    assert torch.equal(logits(model), alone["colour"]) and equal(gates(model), tuned_gates)
    with pytest.raises(RuntimeError, match="inside"), without_adapter(model):
        raise RuntimeError("inside")
    assert torch.equal(logits(model), alone["colour"])
    # Why PEFT's own is not enough.
    with model.disable_adapter():
        assert equal(gates(model), tuned_gates)
        assert not torch.equal(logits(model), alone[None])


def test_a_switch_changes_no_file_and_nothing_that_trains(make_pair):
    make_base, folders, alone = make_pair()
    model = load_adapter(load_adapter(make_base(), folders["colour"], "a"), folders["shape"], "b")
    next(model.parameters()).requires_grad_(True)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    for name in ("a", None, "b"):
        switch(model, name)
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
    # PEFT reads what we wrote, with nothing of ours around it.
    peft_alone = PeftModel.from_pretrained(make_base(), str(folders["colour"]))
    assert torch.equal(logits(peft_alone), alone["colour"])


def test_what_changed_or_moved_while_on_is_kept(make_pair):
    make_base, folders, _ = make_pair()
    model = load_adapter(load_adapter(make_base(), folders["colour"], "a"), folders["shape"], "b")
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            # As training, and as .to() do it.
            parameter.data.add_(1)
            parameter.data = parameter.data.clone()
    changed = logits(model)
    switch(model, "a")
    switch(model, "b")
    assert torch.equal(logits(model), changed)
    # Of another number format: what was kept in float32 comes back in that of the model.
    model.to(torch.bfloat16)
    switch(model, None)
    whole = make_base().to(torch.bfloat16)
    assert torch.equal(logits(model), logits(whole))


def test_a_second_adapter_that_fails_leaves_the_first_as_it_was(make_pair):
    make_base, folders, alone = make_pair()
    weights = folders["shape"] / WEIGHTS_NAME
    whole = load_file(weights)
    model = load_adapter(make_base(), folders["colour"], "colour")
    lora = next(key for key in whole if "lora_A" in key)
    broken = [
        (
            {**whole, "base_model.model.lang_encoder.strange": torch.ones(1)},
            "another base.*strange",
        ),
        ({**whole, lora: torch.ones(2, 2)}, "does not fit"),
    ]
    for tensors, problem in broken:
        save_file(tensors, weights)
        with pytest.raises(UserError, match=problem):
            load_adapter(model, folders["shape"], "shape")
        assert torch.equal(logits(model), alone["colour"])
        assert not any(".shape" in name for name in state(model))
        with without_adapter(model):
            assert torch.equal(logits(model), alone[None])
    save_file(whole, weights)
    assert torch.equal(logits(load_adapter(model, folders["shape"], "shape")), alone["shape"])


def test_names_and_models_that_cannot_be_switched(make_pair):
    make_base, folders, _ = make_pair()
    model = load_adapter(make_base(), folders["colour"], "colour")
    with pytest.raises(ValueError, match="no adapter 'shape'; loaded are: colour"):
        switch(model, "shape")
    with pytest.raises(ValueError, match="'colour' already"):
        load_adapter(model, folders["shape"], "colour")
    for foreign in (
        PeftModel.from_pretrained(make_base(), str(folders["colour"])),
        tuned(make_base()),
    ):
        with pytest.raises(ValueError, match="load_adapter"):
            switch(foreign, None)
    assert json.loads((folders["shape"] / "tuninglab.json").read_text())


def test_on_an_int8_base(make_pair, tiny_bases):
    _, folders, _ = make_pair()

    def base():
        config = quantization_config("int8", torch.float32, left_in_float(TuningConfig(), False))
        return load_flamingo(tiny_bases["plain"], quantization=config)[0]

    alone = {name: logits(load_adapter(base(), folder)) for name, folder in folders.items()}
    alone[None] = logits(base())
    model = load_adapter(
        load_adapter(base(), folders["colour"], "colour"), folders["shape"], "shape"
    )
    assert any(isinstance(module, Int8LoraLinear) for module in model.modules())
    for name in ("shape", "colour", None, "shape"):
        switch(model, name)
        assert torch.equal(logits(model), alone[name])

import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from tuninglab.adapters import saving
from tuninglab.adapters.lora import tune
from tuninglab.adapters.saving import load_adapter, save_adapter, write_adapter
from tuninglab.config.tuning import TuningConfig
from tuninglab.errors import UserError

BRIDGE = {"train_perceiver": True, "train_cross_attention": True}


@torch.no_grad()
def logits(model):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 250, (2, 8), generator=generator)
    config = model.get_base_model().config if isinstance(model, PeftModel) else model.config
    ids[:, 1], ids[0, 5] = config.image_token_id, config.eoc_token_id
    pixels = torch.randn(2, 1, 1, 3, 16, 16, generator=generator)
    return model.eval()(input_ids=ids, pixel_values=pixels).logits


def tuned(model, **settings):
    """A tuned model whose every trained parameter has moved."""
    model = tune(model, TuningConfig(**settings), "some/base")
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("base", ["plain", "tied"])
@pytest.mark.parametrize(
    "settings",
    [{}, BRIDGE, {"train_new_tokens": True}, {"bias": "all"}, {"modules_to_save": ["mlp"]}],
    ids=["gates", "bridge", "tokens", "bias", "modules"],
)
def test_peft_alone_gives_the_same_model(tiny_flamingo, tmp_path, base, settings):
    model = tuned(tiny_flamingo(base), **settings)
    save_adapter(model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_flamingo(base), str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(
        logits(load_adapter(tiny_flamingo(base), tmp_path / "adapter")), logits(model)
    )
    assert not torch.equal(logits(model), logits(tiny_flamingo(base)))


def test_files_and_keys(tiny_flamingo, tmp_path):
    save_adapter(tuned(tiny_flamingo()), tmp_path / "adapter")
    names = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "tuninglab.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert (config["task_type"], config["r"], config["inference_mode"]) == (None, 16, True)
    keys = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    block = "base_model.model.lang_encoder.model.layers.1.gated_cross_attn_layer"
    assert f"{block}.attn_gate" in keys
    assert f"{block}.ff.1.lora_A.weight" in keys


def test_merged_model_answers_the_same(tiny_flamingo):
    model = tuned(tiny_flamingo())
    expected = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, atol=1e-5, rtol=1e-5)


def test_saving_again_replaces(tiny_flamingo, tmp_path):
    save_adapter(tuned(tiny_flamingo(), r=2), tmp_path / "adapter")
    model = tuned(tiny_flamingo(), r=4)
    save_adapter(model, tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(tiny_flamingo(), tmp_path / "adapter")), logits(model))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_media_mode_goes_with_the_adapter(tiny_flamingo, tmp_path, capsys):
    base = tiny_flamingo()
    base.config.media_mode = "next-v1"
    model = tuned(base)
    save_adapter(model, tmp_path / "adapter")
    settings = tmp_path / "adapter" / "tuninglab.json"
    assert json.loads(settings.read_text()) == {"media_mode": "next-v1"}
    capsys.readouterr()
    loaded = load_adapter(tiny_flamingo(), tmp_path / "adapter")
    assert "media_mode: next-v1" in capsys.readouterr().err
    assert torch.equal(logits(loaded), logits(model))
    # Said only where it changes something.
    same = tiny_flamingo()
    same.config.media_mode = "next-v1"
    load_adapter(same, tmp_path / "adapter")
    assert "media_mode" not in capsys.readouterr().err
    # Adapters of other tools, and older ones, leave the base as it is.
    settings.unlink()
    loaded = load_adapter(tiny_flamingo(), tmp_path / "adapter")
    assert loaded.get_base_model().config.media_mode == "previous"
    for text, problem in (("{", "damaged"), ('{"media_mode": "next"}', "'next'; expected one of")):
        settings.write_text(text)
        with pytest.raises(UserError, match=problem):
            load_adapter(tiny_flamingo(), tmp_path / "adapter")


def test_a_converted_adapter_is_written_like_a_tuned_one(tiny_flamingo, tmp_path):
    model = tuned(tiny_flamingo(), r=2)
    save_adapter(model, tmp_path / "tuned")
    config = json.loads((tmp_path / "tuned" / "adapter_config.json").read_text())
    given = ("r", "lora_alpha", "target_modules", "exclude_modules", "peft_type")
    given += ("base_model_name_or_path",)
    tensors = load_file(tmp_path / "tuned" / "adapter_model.safetensors")
    lora = LoraConfig(**{name: config[name] for name in given})
    write_adapter(tmp_path / "written", lora, tensors, "previous")
    assert json.loads((tmp_path / "written" / "adapter_config.json").read_text()) == config
    assert torch.equal(logits(load_adapter(tiny_flamingo(), tmp_path / "written")), logits(model))


def test_no_adapter_is_an_error(tiny_flamingo, tmp_path):
    with pytest.raises(UserError, match="adapter_config.json is missing"):
        load_adapter(tiny_flamingo(), tmp_path)


def test_damaged_or_foreign_adapters_are_errors(tiny_flamingo, tmp_path):
    save_adapter(tuned(tiny_flamingo()), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    state = load_file(weights)
    save_file({**state, "base_model.model.lang_encoder.strange": torch.ones(1)}, weights)
    with pytest.raises(UserError, match="another base model.*strange"):
        load_adapter(tiny_flamingo(), tmp_path)
    key = next(key for key in state if "lora_A" in key)
    save_file({**state, key: torch.ones(2, 2)}, weights)
    with pytest.raises(UserError, match="does not fit"):
        load_adapter(tiny_flamingo(), tmp_path)
    weights.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="does not fit this base model, or is broken"):
        load_adapter(tiny_flamingo(), tmp_path)


def test_what_is_no_fault_of_the_adapter_is_not_told_as_one(tiny_flamingo, tmp_path, monkeypatch):
    save_adapter(tune(tiny_flamingo(), TuningConfig()), tmp_path / "adapter")

    def no_memory(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 GB")

    monkeypatch.setattr(saving, "_with_lora", no_memory)
    with pytest.raises(UserError, match="(?s)can't allocate memory.*close other programs"):
        load_adapter(tiny_flamingo(), tmp_path / "adapter")

    def say_nothing(*args, **kwargs):
        raise ValueError

    monkeypatch.setattr(saving, "_with_lora", say_nothing)
    with pytest.raises(UserError, match="is broken: ValueError"):
        load_adapter(tiny_flamingo(), tmp_path / "adapter")
    # A mistake in this package keeps its class and its traceback.
    monkeypatch.setattr(saving.switching, "places_of", lambda model: None)
    with pytest.raises(TypeError):
        load_adapter(tiny_flamingo(), tmp_path / "adapter")

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.kernels.test_products import needs_onednn
from tuninglab.adapters import products
from tuninglab.adapters.products import FastLoraLinear
from tuninglab.adapters.saving import trained_weights
from tuninglab.config import FinetuneConfig, FlanT5Config
from tuninglab.config.yaml_file import config_yaml
from tuninglab.errors import UserError
from tuninglab.int8.quantiser import int8_layers
from tuninglab.kernels.products import FastLinear
from tuninglab.serving.open_model import open_model


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7]])).logits


def test_a_run_is_its_base_with_its_adapter(model_directory, run_folder):
    base, _ = open_model(str(model_directory))
    tuned, processor = open_model(str(run_folder))
    assert not base.training and not tuned.training
    assert processor.image_token == "<image>"
    assert not torch.allclose(logits(base), logits(tuned))
    with tuned.disable_adapter():
        assert torch.equal(logits(base), logits(tuned))


def test_a_base_kept_in_the_run_comes_before_the_named_one(model_directory, run_folder, tmp_path):
    run = tmp_path / "from_parts"
    shutil.copytree(run_folder, run)
    shutil.copytree(model_directory, run / "base")
    (run / "config.yaml").write_text(config_yaml(FinetuneConfig(model="gone/away/x")))
    assert torch.equal(logits(open_model(str(run))[0]), logits(open_model(str(run_folder))[0]))


def test_what_is_missing_is_said(run_folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(config_yaml(FinetuneConfig(model=str(tmp_path / "gone"))))
    with pytest.raises(UserError, match="saved nothing to go on from.*--overwrite"):
        open_model(str(run))
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    with pytest.raises(UserError, match="--resume --run_name run"):
        open_model(str(run))
    shutil.copytree(run_folder / "adapter", run / "adapter")
    with pytest.raises(UserError, match="base of run.*gone"):
        open_model(str(run))
    (run / "config.yaml").write_text(config_yaml(FlanT5Config()))
    with pytest.raises(UserError, match="a run of flan-t5.*report.html"):
        open_model(str(run))
    with pytest.raises(UserError, match="nowhere"):
        open_model(str(tmp_path / "nowhere"))


@pytest.fixture
def other_device(monkeypatch):
    """A machine with an accelerator; torch's device without storage stands for it."""
    device = torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: device)
    return device


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_a_model_is_put_on_the_accelerator_which_is_told(
    model_directory, run_folder, other_device, capsys
):
    for name in (model_directory, run_folder):
        model, _ = open_model(str(name))
        assert {weight.device for weight in model.parameters()} == {other_device}, name
        assert "device: meta (the GPU that torch can use)" in capsys.readouterr().err


def test_without_an_accelerator_a_model_stays_on_the_cpu_which_is_told(
    model_directory, monkeypatch, capsys
):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    model, _ = open_model(str(model_directory))
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    said = capsys.readouterr().err
    assert "device: cpu (torch can use no GPU here)" in said
    assert f"threads: {torch.get_num_threads()} (" in said


def test_a_run_opens_from_within_its_folder_and_by_any_spelling(run_folder, monkeypatch):
    expected = logits(open_model(str(run_folder))[0])
    before = {path: path.stat().st_mtime_ns for path in sorted(run_folder.rglob("*"))}
    for place, name in ((run_folder, "."), (run_folder, "adapter"), (run_folder.parent, "tuned/")):
        monkeypatch.chdir(place)
        assert torch.equal(logits(open_model(name)[0]), expected), name
    # To look at a run changes nothing in it.
    assert {path: path.stat().st_mtime_ns for path in sorted(run_folder.rglob("*"))} == before


@pytest.fixture
def adapter(run_folder, model_directory, tmp_path):
    """The run's adapter on its own, elsewhere, naming its base."""
    return named_base(shutil.copytree(run_folder / "adapter", tmp_path / "lora"), model_directory)


def named_base(adapter, base):
    file = adapter / "adapter_config.json"
    content = json.loads(file.read_text()) | {"base_model_name_or_path": base and str(base)}
    file.write_text(json.dumps(content))
    return adapter


def test_an_adapter_directory_opens_with_the_base_it_names(
    adapter, run_folder, model_directory, monkeypatch
):
    expected = logits(open_model(str(run_folder))[0])
    assert torch.equal(logits(open_model(str(adapter))[0]), expected)
    # A run's own adapter/ is the run, whatever its adapter_config.json says.
    assert torch.equal(logits(open_model(str(run_folder / "adapter"))[0]), expected)
    # Moved together, a relative path still leads there.
    shutil.copytree(model_directory, adapter / "../base")
    named_base(adapter, "../base")
    monkeypatch.chdir("/")
    assert torch.equal(logits(open_model(str(adapter))[0]), expected)


def test_an_adapter_keeps_its_media_mode(adapter):
    (adapter / "tuninglab.json").write_text('{"media_mode": "next-v1"}')
    assert open_model(str(adapter))[0].get_base_model().config.media_mode == "next-v1"


def test_an_adapter_without_its_base_says_what_to_do(adapter, tmp_path):
    named_base(adapter, None)
    with pytest.raises(UserError, match="does not name the base.*set base_model_name_or_path"):
        open_model(str(adapter))
    named_base(adapter, tmp_path / "gone")
    with pytest.raises(UserError, match="base of adapter .*base_model_name_or_path.*gone"):
        open_model(str(adapter))
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="set base_model_name_or_path"):
        open_model(str(adapter))


@needs_onednn
def test_products_are_chosen_as_a_run_does_and_told(
    model_directory, run_folder, monkeypatch, capsys
):
    expected = [logits(open_model(str(name))[0]) for name in (model_directory, run_folder)]
    monkeypatch.setattr(products, "SMALL", 1)
    monkeypatch.setattr(products, "faster", lambda shapes: (True, "tried"))
    for name, wanted in zip((model_directory, run_folder), expected, strict=True):
        capsys.readouterr()
        model, _ = open_model(str(name))
        assert capsys.readouterr().err.count("products in float32: oneDNN (tried)") == 1
        assert not any(parameter.requires_grad for parameter in model.parameters())
        kinds = {type(module) for module in model.modules()}
        assert FastLinear in kinds and (FastLoraLinear in kinds) == (name == run_folder)
        torch.testing.assert_close(logits(model), wanted, rtol=2e-4, atol=1e-5)


def test_inexact_rounds_what_the_adapter_did_not_train(model_directory, run_folder, capsys):
    exact, processor = open_model(str(run_folder))
    said = capsys.readouterr().err
    assert "decoding: all layers in one call of C (every layer is known" in said
    rounded, _ = open_model(str(run_folder), exact=False)
    assert "base weights: int8 in" in capsys.readouterr().err
    names = {name for name, _ in int8_layers(rounded)}
    trained = trained_weights(run_folder / "adapter")
    assert names and not names & {f"base_model.model.{name}" for name in trained}
    assert all("lang_encoder" in name for name in names)
    difference = (logits(rounded) - logits(exact)).norm() / logits(exact).norm()
    assert 0 < difference < 0.05
    plain, _ = open_model(str(model_directory), exact=False)
    ids = processor(text="colour?", return_tensors="pt")
    assert plain.generate(**ids, max_new_tokens=3).shape[0] == 1


def test_an_adapter_tells_which_weights_it_trained(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    names = ["a.q.lora_A.weight", "a.norm.weight", "a.gate", "head.token_adapter.delta"]
    tensors = {f"base_model.model.{name}": torch.ones(1) for name in names}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert trained_weights(tmp_path) == ["a.norm", "head"]

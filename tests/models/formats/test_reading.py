"""Files as others save them: what is read, what is recovered, what is refused unrun."""

import argparse
import io
import json
import os
import pickle
import sys
import types
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from tuninglab.errors import UserError
from tuninglab.models.formats.reading import read_checkpoint

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def same(tensors, expected=WEIGHTS):
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.fixture
def foreign_config(monkeypatch):
    """Stand-ins for mmengine's classes, by its names; unpickling them for real would be noticed."""

    class ConfigDict(dict):
        def __reduce_ex__(self, protocol):
            return ConfigDict, (dict(self),), None, None, None

    class Config:
        def __init__(self, values):
            self.values = values

        def __getstate__(self):
            return (self.values, "configs/lora.py", "text", None)

        def __setstate__(self, state):
            raise AssertionError("code of the foreign class was run")

    module = types.ModuleType("mmengine.config.config")
    for name in ("mmengine", "mmengine.config"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for cls in (ConfigDict, Config):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
    return Config(ConfigDict(tuning_config=ConfigDict(r=16, targets=["q_proj"], rate=0.05)))


@pytest.mark.parametrize("layout", ["flat", "model_state_dict", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_training_files_and_flat_ones(layout, prefix, zipped, tmp_path):
    state = {prefix + name: tensor for name, tensor in WEIGHTS.items()}
    content = state if layout == "flat" else {layout: state, "epoch": 3, "optimizer": {"x": [1]}}
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(path)
    same(read.tensors)
    assert read.extras == ({} if layout == "flat" else {"epoch": 3})


def test_safetensors_by_content_and_not_by_name(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.bin")
    same(read_checkpoint(tmp_path / "weights.bin").tensors)


def test_safetensors_whose_header_begins_like_a_pickle(tmp_path):
    path, padding = tmp_path / "weights.safetensors", 0
    while not path.exists() or path.read_bytes()[0] != 0x80:
        save_file(WEIGHTS, path, metadata={"padding": "x" * padding})
        padding += 8
    same(read_checkpoint(path).tensors)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_directory_of_shards(kind, tmp_path):
    names = [f"part-{i}.{kind}" for i in range(2)]
    for name, (key, tensor) in zip(names, WEIGHTS.items(), strict=True):
        save = save_file if kind == "safetensors" else torch.save
        save({key: tensor}, tmp_path / name)
    index = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    table = dict(zip(WEIGHTS, names, strict=True))
    (tmp_path / f"{index}.index.json").write_text(json.dumps({"weight_map": table}))
    (tmp_path / "config.json").write_text('{"model_type": "otter"}')
    # Not in the index: an optimizer beside the shards.
    torch.save({"other": torch.ones(1)}, tmp_path / "other.bin")
    read = read_checkpoint(tmp_path)
    same(read.tensors)
    assert read.extras["config"] == {"model_type": "otter"}
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=f"part-1.{kind} of 2 shards is missing"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_foreign_configuration_is_recovered_unrun(zipped, foreign_config, tmp_path):
    content = {"model_state_dict": WEIGHTS, "tuning_config": foreign_config}
    content["args"] = argparse.Namespace(lr=1e-5, name="x")
    path = tmp_path / "lora.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    # As on a machine without that package.
    del sys.modules["mmengine.config.config"]
    read = read_checkpoint(path)
    same(read.tensors)
    assert read.extras["tuning_config"] == {
        "tuning_config": {"r": 16, "targets": ["q_proj"], "rate": 0.05}
    }
    assert read.extras["args"] == {"lr": 1e-5, "name": "x"}
    assert any(
        "tuning_config" in note and "none of its code was run" in note for note in read.notes
    )


class Runs:
    """Runs a function of your choice when it is unpickled."""

    def __init__(self, function, *arguments):
        self.made_by = function, arguments

    def __reduce__(self):
        return self.made_by


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, __import__])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_pickle_is_named_and_not_run(function, protocol, zipped, tmp_path):
    ran = tmp_path / "ran"
    argument = f"touch {ran}" if function is os.system else f"open({str(ran)!r}, 'w')"
    content = {"tuning_config": argparse.Namespace(x=Runs(function, argument)), **WEIGHTS}
    path = tmp_path / "bad.pt"
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save(content, path, **options)
    with pytest.raises(UserError, match=rf"{function.__name__}.*Nothing of it was executed"):
        read_checkpoint(path)
    assert not ran.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_beside_a_name_that_is_allowed(tmp_path):
    # A dotted name, which protocol 4 resolves attribute by attribute.
    path = tmp_path / "dotted.pt"
    stream = io.BytesIO()
    stream.write(b"\x80\x04\x8c\x05torch\x8c\x0ahub.urllib\x93.")
    path.write_bytes(stream.getvalue())
    with pytest.raises(UserError, match="hub.urllib"):
        read_checkpoint(path)


def test_metadata_of_a_state_dict_is_kept(tmp_path):
    state = OrderedDict(WEIGHTS)
    state._metadata = {"tuninglab": {"perceiver_heads": 2}}
    torch.save(state, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").extras["_metadata"] == state._metadata


@pytest.mark.parametrize("kept", [1, 8, 9, 60, -1])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_cut_files(kept, kind, tmp_path):
    path = tmp_path / "cut.pt"
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="cut.pt"):
        read_checkpoint(path)


@pytest.mark.parametrize("value", [[1], "text", 3, None, {1, 2}])
def test_a_pickle_of_something_else(value, tmp_path):
    torch.save(value, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(value, protocol=2))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)


def test_files_in_a_directory_without_an_index(tmp_path):
    torch.save(WEIGHTS, tmp_path / "checkpoint_0.pt")
    same(read_checkpoint(tmp_path).tensors)
    torch.save(WEIGHTS, tmp_path / "checkpoint_1.pt")
    with pytest.raises(UserError, match="checkpoint_0.pt, checkpoint_1.pt.*Name the file"):
        read_checkpoint(tmp_path)
    # Weights proper come before what else torch saved.
    for number, (name, tensor) in enumerate(WEIGHTS.items(), start=1):
        torch.save({name: tensor}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
        if number == 1:
            with pytest.raises(UserError, match="00001-of-00002"):
                read_checkpoint(tmp_path)
    same(read_checkpoint(tmp_path).tensors)

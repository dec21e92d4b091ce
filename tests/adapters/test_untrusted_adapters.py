"""Adapter folders of others: each is put on its base or refused with the file and the key."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftType

from tests.json_values import FORTY, JSON_VALUES
from tuninglab.adapters.saving import load_adapter
from tuninglab.cli import main
from tuninglab.errors import UserError
from tuninglab.run_folder.named_model import find_model


@pytest.fixture
def adapter(run_folder, tmp_path):
    """An adapter folder of one's own."""
    return shutil.copytree(run_folder / "adapter", tmp_path / "adapter")


def change(adapter: Path, **values) -> None:
    file = adapter / "adapter_config.json"
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def refused(model, adapter) -> str:
    with pytest.raises(UserError) as error:
        load_adapter(model, adapter)
    assert str(adapter) in str(error.value)
    return str(error.value)


def test_pickled_weights_are_refused_unread(tiny_flamingo, adapter):
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter / "adapter_model.bin")
    assert "adapter_model.bin, a pickle" in refused(tiny_flamingo(), adapter)


@pytest.mark.parametrize("kind", sorted({kind.value for kind in PeftType} - {"LORA"}) + ["x", 7])
def test_other_kinds_of_adapter_are_refused_by_name(tiny_flamingo, adapter, kind):
    change(adapter, peft_type=kind, tokenizer_name_or_path="owner/name", num_virtual_tokens=3)
    assert "peft_type" in refused(tiny_flamingo(), adapter)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", ...),
        ("r", "x"),
        ("r", 10**9),
        ("r", 0),
        ("r", True),
        ("r", 5000),
        ("lora_alpha", "x"),
        ("lora_alpha", math.inf),
        ("lora_alpha", 10**400),
        ("lora_dropout", "x"),
        ("lora_dropout", 7),
        ("target_modules", "["),
        ("target_modules", "(a+)+$"),
        ("target_modules", 7),
        ("target_modules", [7]),
        ("rank_pattern", {"q_proj": 10**9}),
        ("rank_pattern", {"[": 1}),
        ("rank_pattern", [1]),
        ("alpha_pattern", {"q_proj": "x"}),
        ("trainable_token_indices", [10**9]),
        ("trainable_token_indices", [-(10**9)]),
        ("trainable_token_indices", [1000]),
        ("trainable_token_indices", {"lm_head": [1000]}),
        ("trainable_token_indices", {"lm_head": 7}),
        ("megatron_config", {"tensor_model_parallel_size": 1}),
        ("layer_replication", [[0, 10**6]]),
        ("arrow_config", "x"),
        ("kasa_config", [1]),
        ("eva_config", {"rho": 2}),
        ("loftq_config", {"x": 1}),
        ("corda_config", 1.5),
        ("layers_to_transform", [10**9]),
        ("bias", "x"),
        ("use_dora", "x"),
        ("modules_to_save", 7),
        ("modules_to_save", {"a": 1}),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key(tiny_flamingo, adapter, key, value):
    change(adapter, **{key: value})
    text = refused(tiny_flamingo(), adapter)
    assert "adapter_config.json" in text and (key in text or key == "r")


def test_a_module_is_not_imported_by_its_name(tiny_flamingo, adapter, tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    (tmp_path / "imported_by_name.py").write_text(f"open({str(canary)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    change(adapter, megatron_core="imported_by_name", megatron_config={"a": 1})
    refused(tiny_flamingo(), adapter)
    assert not canary.exists()


@pytest.mark.parametrize("content", ["[" * 100_000, "", "[]", "{", "\0", " " * 5 * 2**20])
@pytest.mark.parametrize("name", ["adapter_config.json", "tuninglab.json"])
def test_files_that_are_no_json_are_named(tiny_flamingo, adapter, name, content):
    (adapter / name).write_text(content)
    assert name in refused(tiny_flamingo(), adapter)
    if name == "adapter_config.json":
        with pytest.raises(UserError, match=name):
            find_model(str(adapter))


def test_a_pipe_is_refused_at_once(adapter):
    os.remove(adapter / "adapter_config.json")
    os.mkfifo(adapter / "adapter_config.json")
    assert main(["chat", str(adapter), "--ask", "x"]) == 2
    assert main(["tree", str(adapter)]) == 2


@pytest.mark.parametrize("base", ["x" * 5000, "a\0b", "", 7, "https://host/x", "..", "~nobody/x"])
def test_a_base_that_is_no_name_is_told_with_the_adapter(adapter, base, capsys):
    change(adapter, base_model_name_or_path=base)
    for words in (["chat", str(adapter), "--ask", "x"], ["tree", str(adapter)]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert str(adapter) in said and len(said) < 2000


@FORTY
@given(st.data())
def test_any_value_anywhere_loads_or_is_refused(tiny_flamingo, adapter, data):
    file = adapter / "adapter_config.json"
    before = file.read_text()
    key = data.draw(st.sampled_from(sorted(json.loads(before))))
    change(adapter, **{key: data.draw(JSON_VALUES)})
    try:
        load_adapter(tiny_flamingo(), adapter)
    except UserError as error:
        assert str(adapter) in str(error)
    finally:
        file.write_text(before)

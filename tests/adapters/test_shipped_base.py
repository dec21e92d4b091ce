import hashlib
import json

import pytest
import torch
from peft import LoraConfig

from tuninglab.adapters.saving import load_adapter, write_adapter
from tuninglab.adapters.shipped_base import check_shipped_base
from tuninglab.embedded import base_directory
from tuninglab.errors import UserError


@pytest.fixture
def adapter(tmp_path):
    """An adapter on the shipped base, as tuning writes it, and what it says of itself."""
    lora = LoraConfig(target_modules=["q_proj"], base_model_name_or_path="embedded")
    write_adapter(tmp_path / "adapter", lora, {"x": torch.zeros(1)}, "previous")
    return tmp_path / "adapter", tmp_path / "adapter" / "tuninglab.json"


def test_an_adapter_says_which_shipped_base_it_belongs_to(adapter):
    folder, file = adapter
    weights = (base_directory() / "model.safetensors").read_bytes()
    said = json.loads(file.read_text())
    assert said == {
        "media_mode": "previous",
        "embedded_base": hashlib.sha256(weights).hexdigest()[:12],
    }
    check_shipped_base(folder)


@pytest.mark.parametrize("said", [{"media_mode": "previous"}, {"embedded_base": "0" * 12}])
def test_one_of_an_earlier_base_is_refused(adapter, said):
    folder, file = adapter
    file.write_text(json.dumps({"media_mode": "previous"} | said))
    with pytest.raises(UserError, match="embedded base of another version"):
        check_shipped_base(folder)
    with pytest.raises(UserError, match="embedded base of another version"):
        load_adapter(torch.nn.Linear(1, 1), folder)


def test_others_are_not_asked(adapter):
    folder, file = adapter
    config = folder / "adapter_config.json"
    named = json.loads(config.read_text())
    # PEFT alone writes no such file.
    text = file.read_text()
    file.unlink()
    check_shipped_base(folder)
    file.write_text(text.replace("embedded_base", "other"))
    config.write_text(json.dumps(named | {"base_model_name_or_path": "models/mine"}))
    check_shipped_base(folder)

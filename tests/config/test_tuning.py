import subprocess
import sys

import pytest

from tuninglab.config.tuning import TuningConfig
from tuninglab.errors import UserError

# As it stands in the source document.
DOCUMENT = dict(
    r=16,
    lora_alpha=16,
    lora_target_modules=["q_proj", "k_proj", "v_proj", "o_proj",
     "to_q", "to_kv", "to_out",
      "ff.1", "ff.3"],
    lora_dropout=0.0,
    bias="none",
    modules_to_save=[],
    task_type="VL",
    )  # fmt: skip


def test_document_dict_is_the_default():
    assert TuningConfig.from_dict(DOCUMENT) == TuningConfig()


def test_hugging_face_name_is_an_alias():
    assert TuningConfig.from_dict({"target_modules": ["fc1"]}).lora_target_modules == ["fc1"]
    assert TuningConfig.from_dict({"target_modules": "fc1"}).lora_target_modules == ["fc1"]
    with pytest.raises(UserError, match="twice"):
        TuningConfig.from_dict({"target_modules": ["a"], "lora_target_modules": ["b"]})


def test_unknown_key_names_the_nearest():
    with pytest.raises(UserError, match="'lora_alhpa' in tuning_config. Did you mean 'lora_alpha'"):
        TuningConfig.from_dict({"lora_alhpa": 3})


@pytest.mark.parametrize(
    "wrong",
    [
        {"r": 0},
        {"r": True},
        {"r": 2.5},
        {"lora_alpha": "16"},
        {"lora_dropout": 1.0},
        {"lora_dropout": float("nan")},
        {"gate_lr_multiplier": float("inf")},
        {"gate_lr_multiplier": 0},
        {"bias": "some"},
        {"task_type": "VLM"},
        {"lora_target_modules": ["q", ""]},
        {"lora_target_modules": []},
        {"lora_target_modules": [1]},
        {"modules_to_save": {"a": 1}},
        {"train_gates": "yes"},
    ],
)
def test_wrong_values_are_named(wrong):
    with pytest.raises(UserError, match=f"tuning_config.{next(iter(wrong))} is"):
        TuningConfig.from_dict(wrong)


@pytest.mark.parametrize(
    "wrong", [{"r": 2.5}, {"lora_dropout": "much"}, {"bias": "some"}, {"train_gates": "yes"}]
)
def test_what_is_set_in_python_is_checked_too(wrong):
    with pytest.raises(UserError, match=f"tuning_config.{next(iter(wrong))} is"):
        TuningConfig(**wrong).validate()


def test_other_types_are_refused():
    with pytest.raises(UserError, match="mapping"):
        TuningConfig.from_dict([("r", 16)])  # type: ignore[arg-type]


def test_import_loads_no_torch():
    code = "import sys, tuninglab.config.tuning; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

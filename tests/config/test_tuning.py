import subprocess
import sys

import pytest

from tuninglab.config import FinetuneConfig
from tuninglab.config.flags import parse
from tuninglab.config.tuning import TuningConfig
from tuninglab.config.yaml_file import config_yaml, read_config
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


def flags(*words):
    return parse("tuninglab finetune", FinetuneConfig, words).tuning_config


def test_mappings_as_flags_and_in_files(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "tuning_config:\n  rank_pattern: {q_proj: 8, ff.1: 32}\n"
        "  part_learning_rates: {gates: 1e-2, vision: 1}\n  train: vision\n  freeze: [lm, head]\n"
    )
    words = "--tuning_config.rank_pattern q_proj=8 ff.1=32 --part_learning_rates gates=1e-2"
    expected = TuningConfig(
        rank_pattern={"q_proj": 8, "ff.1": 32},
        part_learning_rates={"gates": 0.01, "vision": 1.0},
        train=["vision"],
        freeze=["lm", "head"],
    )
    given = flags(*words.split(), *"vision=1 --train vision --freeze lm head".split())
    assert given == flags("--config", str(path)) == expected
    # The order counts: the first pattern that hits a layer.
    assert list(given.rank_pattern) == ["q_proj", "ff.1"]
    over = flags("--config", str(path), "--tuning_config.rank_pattern", "(?=x)y=3")
    assert over.rank_pattern == {"(?=x)y": 3}
    path.write_text(config_yaml(FinetuneConfig(tuning_config=expected)))
    assert read_config(path, FinetuneConfig).tuning_config == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--tuning_config.rank_pattern q_proj", "'q_proj' is not PATTERN=NUMBER"),
        ("--tuning_config.rank_pattern q_proj=8 q_proj=9", "'q_proj' twice"),
        ("--tuning_config.rank_pattern q_proj=many", "'many'"),
        ("--train vison", "vison"),
    ],
)
def test_words_that_are_no_mapping_or_part_exit_2(words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        flags(*words.split())
    assert caught.value.code == 2 and said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern of q_proj is 0"),
        ({"alpha_pattern": {"q_proj": 2.5}}, "alpha_pattern.q_proj is 2.5"),
        ({"rank_pattern": ["q_proj"]}, "expected `name: number` lines"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"part_learning_rates": {"gate": 1e-3}}, "'gate'; .* Did you mean gates"),
        ({"part_learning_rates": {"lm": -1}}, "part_learning_rates of lm is -1"),
        ({"part_learning_rates": {"gates": 1e-3}, "gate_lr_multiplier": 3}, "Give one"),
        ({"train": ["vision"], "freeze": ["vision", "lm"]}, "vision is to train"),
        ({"train_perceiver": True, "freeze": ["perceiver"]}, "train_perceiver is to train"),
        ({"train_new_tokens": True, "freeze": ["embeddings"]}, "embeddings is to train"),
        ({"train": ["gates"], "train_gates": False}, "train_gates is false"),
        ({"lora_target_modules": ["all-linear", "q_proj"]}, "all-linear alone"),
        ({"init_lora_weights": "eva"}, "expected one of default.* needs a pass over the data"),
        ({"init_lora_weights": "pissa_niter_"}, "pissa_niter_N"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        TuningConfig.from_dict(settings)


def test_words_come_to_the_switches():
    assert TuningConfig().full_parts == {"gates"}
    tuning = TuningConfig(train_perceiver=True, train=["vision", "lm"], freeze=["gates"])
    assert tuning.full_parts == {"perceiver", "vision", "lm"}


def test_a_new_bridge_cannot_be_frozen():
    parts = {"lang_encoder": "a", "vision_encoder": "b"}
    config = FinetuneConfig(**parts, tuning_config=TuningConfig(freeze=["perceiver"]))
    with pytest.raises(UserError, match="--freeze names perceiver, but --lang_encoder"):
        config.validate()

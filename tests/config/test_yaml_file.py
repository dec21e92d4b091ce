import pytest

from tuninglab.config import DemoConfig, FinetuneConfig, FlanT5Config
from tuninglab.config.yaml_file import config_yaml, read_config, read_recipe
from tuninglab.errors import UserError


def read(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_config(path, FinetuneConfig)


def test_settings_come_from_the_file_and_the_rest_stays(tmp_path):
    config = read(
        tmp_path,
        "learning_rate: 1e-5  # no dot: text in YAML 1.1\nval_split: 0\nmax_steps: null\n"
        "tuning_config: {r: 8, bias: none, lora_target_modules: [q_proj]}\n",
    )
    assert config.learning_rate == 1e-5
    assert config.val_split == 0.0
    assert config.max_steps is None
    assert (config.tuning_config.r, config.tuning_config.bias) == (8, "none")
    assert config.tuning_config.lora_target_modules == ["q_proj"]
    assert config.tuning_config.lora_alpha == 16
    assert config.batch_size == FinetuneConfig().batch_size


def test_what_is_written_reads_back_the_same(tmp_path):
    config = FinetuneConfig(run_name="第一次", learning_rate=3e-6, max_steps=7, data="a b.json")
    config.tuning_config.lora_target_modules = ["to_q"]
    assert read(tmp_path, config_yaml(config)) == config
    assert read(tmp_path, b"\xef\xbb\xbf" + config_yaml(config).encode()) == config


def test_what_concerns_one_call_is_not_written():
    text = config_yaml(FinetuneConfig(run_name="x", resume=True, json=True, config="r.yaml"))
    assert not any(line.startswith(("resume:", "json:", "config:")) for line in text.splitlines())
    assert "overwrite" not in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("learning_rat: 1\n", ["'learning_rat'", "Did you mean 'learning_rate'", "batch_size"]),
        ("recipe: flan-t5\n", ["recipe", "'flan-t5'", "one of finetune"]),
        ("lean: [loss, gl]\n", ["memory_savers", "'gl'", "norm, glu"]),
        ("INT8_BY_DEFAULT: x\n", ["unknown key 'INT8_BY_DEFAULT'"]),
        ("typed: [x]\n", ["unknown key 'typed'"]),
        ("tuning_config:\n  rr: 1\n", ["tuning_config", "'rr'", "lora_alpha"]),
        ("tuning_config: 3\n", ["tuning_config", "int"]),
        ("batch_size: two\n", ["batch_size", "'two'", "whole number"]),
        ("batch_size: true\n", ["batch_size", "True"]),
        ("batch_size: 2.0\n", ["batch_size", "2.0"]),
        ("learning_rate: fast\n", ["learning_rate", "'fast'"]),
        ("lr_scheduler: cosin\n", ["lr_scheduler", "'cosin'", "constant, linear, cosine"]),
        ("run_name: 7\n", ["run_name", "quotes"]),
        ("resume: 1\n", ["resume", "true or false"]),
        ("a: 1\nb: [1,\nc: }\n", ["line 3"]),
        ("a: 1\n\tb: 2\n", ["line 2"]),
        ("- 1\n- 2\n", ["list"]),
        ("", ["empty"]),
        (b"\xff\xfe\x00bad", ["UTF-8"]),
        (b"a: \x00", ["broken YAML"]),
        ("[" * 100_000, ["broken YAML (brackets nested too deeply). Correct it there"]),
        ("run_name: 2024-99-99\n", ["broken YAML"]),
    ],
)
def test_a_wrong_file_is_a_user_error_that_says_where(tmp_path, text, parts):
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert "recipe.yaml" in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_user_errors(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match="--config"):
            read_config(path, FinetuneConfig)


def test_other_verbs_read_files_too(tmp_path):
    (tmp_path / "demo.yaml").write_text("seed: 3\n")
    assert read_config(tmp_path / "demo.yaml", DemoConfig) == DemoConfig(seed=3)


def test_the_spellings_of_the_flags_work_in_a_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("num_train_epochs: 2\ntuning_config: {target_modules: [q_proj]}\n")
    config = read_config(path, FinetuneConfig)
    assert config.epochs == 2 and config.tuning_config.lora_target_modules == ["q_proj"]
    path.write_text("epochs: 1\nnum_train_epochs: 2\n")
    with pytest.raises(UserError, match="epochs is given twice"):
        read_config(path, FinetuneConfig)
    path.write_text("tuning_config:\n")
    assert read_config(path, FinetuneConfig) == FinetuneConfig()


def test_a_run_tells_its_recipe(tmp_path):
    path = tmp_path / "config.yaml"
    for config in (FinetuneConfig(seed=3), FlanT5Config(memory_savers=["loss"], enable_int8=False)):
        path.write_text(config_yaml(config))
        assert read_recipe(path) == config
    # A run from before there was a second recipe.
    path.write_text("seed: 3\n")
    assert read_recipe(path) == FinetuneConfig(seed=3)


# As `finetune --enable_int8` wrote it before `lean` became `memory_savers` (289fa3a).
OLD = """recipe: finetune
model: embedded
data: null
val_data: null
val_split: 0.0
run_name: int8
output_dir: /tmp/old_runs
epochs: 1
max_steps: 6
batch_size: 4
gradient_accumulation_steps: 1
learning_rate: 0.0002
lr_scheduler: cosine
warmup_steps: null
weight_decay: 0.0
max_grad_norm: 1.0
workers: 0
precision: auto
enable_int8: true
quantization: int8
lean:
- norm
- glu
seed: 0
logging_steps: 1
save_steps: 3
eval_steps: null
activation_checkpointing: false
checkpoint_every: null
skip_bad_records: false
max_tokens: null
tuning_config:
  r: 16
  lora_alpha: 16
  lora_target_modules:
  - q_proj
  - ff.3
  lora_dropout: 0.0
  bias: none
  modules_to_save: []
  task_type: VL
  train_gates: true
  train_perceiver: false
  train_cross_attention: false
  train_new_tokens: false
  gate_lr_multiplier: 10.0
image_root: null
embedded_pictures: 60
lang_encoder: null
vision_encoder: null
cross_attn_every_n_layers: 4
compare: false
rounds: 5
"""


def test_a_run_of_the_first_version_still_loads(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(OLD)
    config = read_recipe(path)
    assert config == FinetuneConfig(
        **{"run_name": "int8", "output_dir": "/tmp/old_runs", "max_steps": 6, "batch_size": 4},
        **{"enable_int8": True, "quantization": "int8", "memory_savers": ["norm", "glu"]},
        **{"save_steps": 3, "embedded_pictures": 60, "epochs": 1, "learning_rate": 2e-4},
        tuning_config={"lora_target_modules": ["q_proj", "ff.3"]},
    )
    config.validate()
    # What that version did not know keeps the default of today.
    assert config.keep_checkpoints == 2


def test_part_of_a_tuning_config_keeps_the_patterns_of_its_recipe(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("tuning_config: {r: 4}\n")
    tuning = read_config(path, FlanT5Config).tuning_config
    assert (tuning.r, tuning.lora_target_modules[:2]) == (4, ["q", "k"])

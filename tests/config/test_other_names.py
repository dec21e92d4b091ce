"""Names of other tools are told ours, as flags and in files; and --help has all of ours."""

import re

import pytest

from tuninglab.config import DemoConfig, FinetuneConfig, FlanT5Config
from tuninglab.config.fields import names_of
from tuninglab.config.flags import flags_of, parse
from tuninglab.config.help import GROUPS, REST
from tuninglab.config.other_names import OTHER_NAMES
from tuninglab.config.yaml_file import read_config
from tuninglab.errors import UserError

# As practitioners type them (LLaMA-Factory, transformers' TrainingArguments, peft), and ours.
THEIRS = {
    "lora_rank": ("tuning_config.r", "tuning_config: {r: ...}"),
    "lora_r": ("tuning_config.r", "tuning_config: {r: ...}"),
    "r": ("tuning_config.r", "tuning_config: {r: ...}"),
    "lora_alpha": ("tuning_config.lora_alpha", "tuning_config: {lora_alpha: ...}"),
    "lora_dropout": ("tuning_config.lora_dropout", "tuning_config: {lora_dropout: ...}"),
    "lora_target": (
        "tuning_config.lora_target_modules",
        "tuning_config: {lora_target_modules: ...}",
    ),
    "use_dora": ("tuning_config.use_dora", "tuning_config: {use_dora: ...}"),
    "cutoff_len": ("max_tokens", "max_tokens: ..."),
    "max_length": ("max_tokens", "max_tokens: ..."),
    "model_name_or_path": ("model", "model: ..."),
    "load_in_8bit": ("enable_int8 true", "enable_int8: true"),
    "load_in_4bit": ("quantization bnb-nf4", "quantization: bnb-nf4"),
    "bf16": ("precision bf16", "precision: bf16"),
    "fp16": ("precision fp16", "precision: fp16"),
    "eval_strategy": ("eval_steps", "eval_steps: ..."),
    "val_size": ("val_split", "val_split: ..."),
    "load_best_model_at_end": ("keep_best", "keep_best: ..."),
    "metric_for_best_model": ("eval_metric", "eval_metric: ..."),
    "early_stopping_patience": ("patience", "patience: ..."),
    "freeze_vision_tower": ("tuning_config.freeze vision", "tuning_config: {freeze: vision}"),
}
# Theirs that are ours already, or other spellings of ours.
SAME = (
    *("per_device_train_batch_size", "num_train_epochs", "output_dir", "max_steps", "seed"),
    *("gradient_checkpointing", "max_seq_length", "gradient_accumulation_steps", "save_steps"),
    *("learning_rate", "lr_scheduler_type", "weight_decay", "warmup_steps", "logging_steps"),
    *("eval_steps", "max_grad_norm", "save_total_limit", "overwrite_output_dir"),
)


@pytest.mark.parametrize("written", THEIRS)
def test_a_name_of_another_tool_is_told_ours(written, tmp_path):
    flag, line = THEIRS[written]
    for word in (f"--{written}", f"--{written.replace('_', '-')}", f"--{written}=8"):
        with pytest.raises(UserError, match=re.escape(f"--{written} is called --{flag} here")):
            parse("tuninglab finetune", FinetuneConfig, [word, "8"])
    (tmp_path / "a.yaml").write_text(f"{written}: 8\n")
    with pytest.raises(UserError, match=re.escape(f"'{written}'. It is called `{line}` here.")):
        read_config(tmp_path / "a.yaml", FinetuneConfig)
    # What it says works.
    words = f"--{flag}".split()
    known = flags_of(FinetuneConfig)
    assert words[0][2:] in known
    if len(words) == 2:
        parse("tuninglab finetune", FinetuneConfig, words).validate()
        (tmp_path / "b.yaml").write_text(f"{line}\n")
        assert read_config(tmp_path / "b.yaml", FinetuneConfig) != FinetuneConfig()


def test_names_that_work_already_are_not_in_the_table():
    known = flags_of(FinetuneConfig)
    assert set(SAME) <= set(known)
    assert not set(OTHER_NAMES) & set(known)
    targets = {ours.split()[0] for ours in OTHER_NAMES.values()}
    assert targets <= set(names_of(FinetuneConfig))


def test_inside_the_tuning_config_too(tmp_path):
    (tmp_path / "a.yaml").write_text("tuning_config: {lora_rank: 8}\n")
    with pytest.raises(UserError, match="'lora_rank' in tuning_config. It is called .*{r: ...}"):
        read_config(tmp_path / "a.yaml", FinetuneConfig)


def test_a_verb_without_the_setting_makes_no_such_promise(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("lora_rank: 8\n")
    with pytest.raises(UserError) as caught:
        read_config(tmp_path / "a.yaml", DemoConfig)
    assert "called" not in str(caught.value)
    with pytest.raises(SystemExit):
        parse("tuninglab demo", DemoConfig, ["--lora_rank", "8"])
    with pytest.raises(UserError, match="image_root"):
        parse("tuninglab finetune", FinetuneConfig, ["--image_folder", "8"])
    with pytest.raises(SystemExit):
        parse("tuninglab flan-t5", FlanT5Config, ["--image_folder", "8"])


@pytest.mark.parametrize("config_class", [FinetuneConfig, FlanT5Config])
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_has_every_flag_once_with_its_text_and_first_what_is_needed(
    config_class, word, capsys
):
    with pytest.raises(SystemExit) as caught:
        parse("tuninglab x", config_class, ["--run_name", "a", word])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    flags = re.findall(
        r"(?<=[ ,]--)[\w.]+(?=[, ])(?=.*$)",
        "\n".join(line for line in text.splitlines() if line.startswith("  --")),
        re.MULTILINE,
    )
    assert sorted(flags) == sorted(set(flags_of(config_class)) - {"recipe", "typed"})
    assert not re.search(r"\n  --\S.*\n(  --|\n)", text), "a flag without a text"
    heads = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    assert heads[0] == "What it needs first"
    first = text[: text.index(heads[1])]
    for name in ("run_name", "data", "learning_rate", "lr_scheduler", "workers", "batch_size"):
        assert f"  --{name}" in first
    assert all(len(line) <= 100 for line in text.splitlines())


def test_every_setting_has_its_group():
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    for config_class in (FinetuneConfig, FlanT5Config):
        plain = {name for name in names_of(config_class) if "." not in name}
        assert plain - {"recipe"} <= set(grouped), f"else it stands under {REST}"

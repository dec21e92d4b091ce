import os

import pytest

from tuninglab.config import ChatConfig, FinetuneConfig, FlanT5Config, ReportConfig, ServeConfig
from tuninglab.config.flags import parse, without_blanks
from tuninglab.errors import UserError


def finetune(*words):
    return parse("tuninglab finetune", FinetuneConfig, words)


def test_the_command_of_the_document_with_its_blank_argument():
    words = "--run_name exp_1 --learning_rate 1e-5 --lr_scheduler cosine --workers 1 --batch_size 1"
    config = finetune(*words.split(), " ")
    expected = FinetuneConfig(run_name="exp_1", learning_rate=1e-5, workers=1, batch_size=1)
    assert config == expected


def test_blank_words_go_and_others_stay():
    assert without_blanks(["--a", " ", "", "\t", "b c"]) == ["--a", "b c"]


def test_hyphens_read_as_underscores():
    config = finetune("--run-name", "x", "--tuning-config.lora-alpha", "32")
    assert config.run_name == "x"
    assert config.tuning_config.lora_alpha == 32


def test_hugging_face_spellings():
    words = "--per_device_train_batch_size 3 --num_train_epochs 2 --lr_scheduler_type linear"
    more = "--lr 1e-3 --dataloader_num_workers 4 --gradient_checkpointing"
    assert finetune(*words.split(), *more.split()) == FinetuneConfig(
        batch_size=3,
        epochs=2,
        lr_scheduler="linear",
        learning_rate=1e-3,
        workers=4,
        activation_checkpointing=True,
    )


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--skip_bad_records"], True),
        (["--skip-bad-records", "true"], True),
        (["--skip_bad_records", "True"], True),
        (["--skip_bad_records", "false"], False),
        (["--skip_bad_records=False"], False),
        (["--skip_bad_records=TRUE"], True),
        ([], False),
    ],
)
def test_switches_in_every_spelling(words, value):
    assert finetune(*words, "--seed", "3").skip_bad_records is value


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--enable_int8"], True),
        (["--enable_int8", "true"], True),
        (["--enable-int8", "False"], False),
        (["--enable_int8=false"], False),
        ([], None),
    ],
)
def test_a_switch_that_may_be_left_open(words, value):
    config = parse("tuninglab flan-t5", FlanT5Config, [*words, "--seed", "3"])
    assert config.enable_int8 is value


def test_a_quantization_overrides_what_the_recipe_or_its_file_leaves_open(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("recipe: flan-t5\nlearning_rate: 1e-3\n")
    words = ["--quantization", "none"]
    for more in ([], ["--config", str(path)]):
        assert parse("tuninglab flan-t5", FlanT5Config, words + more).base_format == "none"


def test_what_was_typed_is_known_in_every_spelling(tmp_path):
    words = "--lr 2e-4 --tuning-config.r=16 --lean --json --target_modules q_proj --workers 0"
    assert finetune(*words.split()).typed == {
        *("learning_rate", "tuning_config.r", "memory_savers", "json", "workers"),
        "tuning_config.lora_target_modules",
    }
    assert finetune().typed == frozenset()
    path = tmp_path / "recipe.yaml"
    path.write_text("num_train_epochs: 1\ntuning_config: {target_modules: [q_proj]}\n")
    assert finetune("--config", str(path), "--seed", "0").typed == {
        *("epochs", "tuning_config.lora_target_modules", "config", "seed"),
    }


def test_memory_savers_by_name_and_none_at_all():
    assert finetune("--lean", "--seed", "3").memory_savers == []
    assert finetune("--lean", "loss", "norm").memory_savers == ["loss", "norm"]
    assert finetune().memory_savers is None


def test_switches_inside_tuning_config():
    config = finetune("--tuning_config.train_gates", "false", "--tuning_config.train-perceiver")
    assert not config.tuning_config.train_gates
    assert config.tuning_config.train_perceiver


def test_a_switch_leaves_a_positional_argument_alone():
    assert parse("tuninglab report", ReportConfig, ["--json", "runs/a"]).run == "runs/a"
    assert parse("tuninglab chat", ChatConfig, ["--terminal", "runs/a"]).model == "runs/a"


def test_lists_and_repeated_flags():
    words = "--tuning_config.lora_target_modules q_proj v_proj --seed 1 --seed 2".split()
    config = finetune(*words)
    assert config.tuning_config.lora_target_modules == ["q_proj", "v_proj"]
    assert config.seed == 2


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("learning_rate: 1e-3\nbatch_size: 2\ntuning_config: {r: 4, lora_alpha: 8}\n")
    config = finetune("--config", str(path), "--batch_size", "5", "--tuning_config.r", "2")
    assert (config.learning_rate, config.batch_size) == (1e-3, 5)
    assert (config.tuning_config.r, config.tuning_config.lora_alpha) == (2, 8)


def test_ranges_are_checked_after_parsing():
    with pytest.raises(UserError, match="--learning_rate is nan"):
        finetune("--learning_rate", "nan")
    with pytest.raises(UserError, match="--learning_rate is -1.0"):
        finetune("--learning_rate", "-1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learnin_rate", "1"], "--learning_rate"),
        (["--batch_size", "many"], "many"),
        (["--lr_scheduler", "cosin"], "cosin"),
        (["--resume", "perhaps"], "perhaps"),
        (["--run_name", ""], "run_name"),
        (["stray"], "stray"),
    ],
)
def test_flags_that_cannot_be_read_exit_2_on_standard_error(words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        finetune(*words)
    output = capsys.readouterr()
    assert caught.value.code == 2
    assert said in output.err
    assert output.out == ""


def test_only_the_first_process_speaks(second_process, capsys):
    with pytest.raises(SystemExit):
        finetune("--no_such_flag", "1")
    assert capsys.readouterr() == ("", "")


def test_help_lists_other_spellings(capsys):
    with pytest.raises(SystemExit) as caught:
        finetune("--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for word in ("--lr ", "--num_train_epochs", "--tuning_config.r", "--config", "Peak learning"):
        assert word in text


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("", None),
        ("--cache_features", "auto"),
        ("--cache_features --epochs 2", "auto"),
        ("--cache-features --epochs 2", "auto"),
        ("--cache_features kept --epochs 2", "kept"),
        ("--cache_features=kept", "kept"),
        ("--cache_features auto", "auto"),
    ],
)
def test_a_flag_that_may_stand_without_a_value(words, folder):
    config = finetune(*words.split())
    assert config.cache_features == folder
    assert config.epochs == (2 if "epochs" in words else None)
    # A run keeps its folder, from wherever it is resumed; `auto` moves with the runs.
    kept = os.path.abspath("kept") if folder == "kept" else folder
    assert config.located().cache_features == kept


def test_a_flag_that_may_be_repeated_loses_nothing():
    words = ["m", "--adapter", "a=x", "--adapter=b=y", "--allow_image_urls", "one.org"]
    config = parse("tuninglab serve", ServeConfig, words)
    assert config.adapter == ["a=x", "b=y"] and config.allow_image_urls == ["one.org"]
    with pytest.raises(UserError, match="different names"):
        parse("tuninglab serve", ServeConfig, ["m", "--adapter", "a=x", "--adapter", "a=y"])

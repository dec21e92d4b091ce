"""Settings that no run can have: refused with the flag or the file, in bounded time and memory."""

import os
import time

import pytest

from tuninglab.cli import main
from tuninglab.config import FinetuneConfig
from tuninglab.config.yaml_file import load_yaml, read_config
from tuninglab.errors import UserError


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(9),
        bomb(9).replace("a8: &a8 ", "tuning_config:\n  lora_target_modules: "),
        "a: &a {b: 1}\n" + "\n".join(f"c{n}: {{<<: [*a, *a, *a]}}" for n in range(9)),
        "run_name: " + "x" * 300_000,
        "max_steps: 1" + "0" * 5000,
        "run_name: [&a [*a]]",
    ],
    ids=["laughs", "laughs in a list", "merges", "large", "5,000 digits", "in itself"],
)
def test_a_file_that_grows_is_refused_at_once(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(UserError, match="settings.yaml") as error:
        read_config(path, FinetuneConfig)
    assert time.process_time() - started < 2 and len(str(error.value)) < 1500


def test_a_few_aliases_are_taken():
    assert load_yaml("a: &a [1, 2]\nb: *a\nc: *a") == {name: [1, 2] for name in "abc"}


def test_pipes_and_devices_are_refused_at_once(tmp_path, capsys):
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path in (str(pipe), "/dev/zero"):
        assert main(["finetune", "--config", path]) == 2
        said = capsys.readouterr().err
        assert path in said and "--config" in said and "no regular file" in said


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("max_steps", 10**30),
        ("epochs", 10**30),
        ("batch_size", 10**10),
        ("workers", 10**6),
        ("threads", 10**6),
        ("seed", 2**32),
        ("learning_rate", 1e38),
        ("weight_decay", 1e300),
        ("max_grad_norm", 1e300),
        ("tuning_config.r", 10**9),
        ("tuning_config.lora_alpha", 10**300),
        ("tuning_config.lora_alpha", 10**400),
        ("tuning_config.gate_lr_multiplier", 1e300),
        ("tuning_config.rank_pattern", "q_proj=1000000000"),
        ("tuning_config.part_learning_rates", "lm=1e30"),
        ("tuning_config.lora_target_modules", "\v"),
        ("output_dir", "a\0b"),
        ("output_dir", "x" * 5000),
        ("output_dir", "\ud800"),
        ("data", "a\0b"),
        ("image_root", "x" * 256),
        ("val_data", "a\0b"),
        ("model", "https://host/x"),
        ("lang_encoder", "a\0b"),
        ("cache_features", "x" * 5000),
    ],
)
@pytest.mark.parametrize("place", ["flag", "file"])
def test_what_no_run_can_have_is_refused_with_its_flag(tmp_path, capsys, place, flag, value):
    folder = str(tmp_path / "runs")
    if place == "flag":
        words = ["finetune", f"--{flag}={value}", "--output_dir", folder][
            : 2 if flag == "output_dir" else 4
        ]
    else:
        inner, _, name = flag.rpartition(".")
        pair = (
            str(value).partition("=") if name in ("rank_pattern", "part_learning_rates") else None
        )
        text = f"{{{pair[0]}: {pair[2]}}}" if pair else ascii(value).replace("'", '"')
        line = f"{name}: {text}\n"
        path = tmp_path / "settings.yaml"
        path.write_text(f"{inner}:\n  {line}" if inner else line)
        words = ["finetune", "--config", str(path)]
        words += [] if flag == "output_dir" else ["--output_dir", folder]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err and len(said.err) < 6000
    assert flag.rpartition(".")[2] in said.err + said.out or str(tmp_path) in said.err + said.out
    assert not os.path.exists(folder)


@pytest.mark.parametrize("name", ["", " ", "https://x/y", "..", "a\0b", "x" * 5000])
def test_a_model_that_is_no_name_is_told_with_its_flag(tmp_path, capsys, name):
    path = tmp_path / "settings.yaml"
    path.write_text(f"model: {ascii(name)}\n".replace("'", '"'))
    assert main(["finetune", "--config", str(path), "--output_dir", str(tmp_path / "runs")]) == 2
    assert "--model" in capsys.readouterr().err

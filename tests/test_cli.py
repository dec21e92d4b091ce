import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from tuninglab import cli
from tuninglab.config import FinetuneConfig
from tuninglab.config.yaml_file import config_yaml
from tuninglab.errors import UserError, WorkError

ROOT = Path(__file__).resolve().parents[1]


def raises(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("give another"), 2, "give another"),
        (WorkError("it broke"), 1, "it broke"),
        (KeyboardInterrupt(), 130, "Ctrl-C"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 1, "runs/a"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/b"), 2, "runs/b"),
        (OSError(errno.EROFS, "Read-only file system", "runs/c"), 2, "runs/c"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_errors_become_exit_codes_and_one_message(error, code, said, debug, capsys):
    assert cli.run_command(raises(error), debug) == code
    output = capsys.readouterr()
    assert said in output.err
    assert ("Traceback" in output.err) is debug
    assert output.out == ""


def test_errors_that_nobody_foresaw_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run_command(raises(ZeroDivisionError()))
    with pytest.raises(OSError):
        cli.run_command(raises(OSError(errno.EIO, "broken")))


def test_the_work_being_done_is_0():
    assert cli.run_command(lambda: None) == 0


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"], [" ", "--help"]])
def test_help_names_every_verb(words, capsys):
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    assert f"tuninglab {verb}" in capsys.readouterr().out


def test_an_unknown_verb_gets_the_nearest(capsys):
    assert cli.main(["finetun", "--seed", "1"]) == 2
    assert "Did you mean 'finetune'" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "tuninglab 0.1.0\n"


def test_print_config_prints_the_resolved_settings_and_stops(capsys):
    words = ["finetune", "--print_config", "--lr", "1e-5", "--run_name", "x", " "]
    assert cli.main(words) == 0
    output = capsys.readouterr()
    assert output.out == config_yaml(FinetuneConfig(run_name="x", learning_rate=1e-5))
    assert yaml.safe_load(output.out)["learning_rate"] == 1e-5
    assert output.err == ""


@pytest.mark.parametrize(
    "words", [["--learning_rate", "nan"], ["--run_name", "a/b"], ["--config", "nowhere.yaml"]]
)
def test_a_wrong_setting_is_one_line_without_traceback(words, capsys):
    assert cli.finetune_main(words) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_debug_shows_the_traceback(capsys):
    assert cli.finetune_main(["--batch_size", "0", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


HEAVY = "import sys; print(sorted({'torch', 'transformers', 'peft', 'numpy'} & {*sys.modules}))"


@pytest.mark.parametrize(
    "start",
    [
        "import tuninglab",
        "import tuninglab.config, tuninglab.config.yaml_file, tuninglab.config.flags",
        "import tuninglab; tuninglab.TuningConfig",
        "from tuninglab.cli import main; main(['--help'])",
        "from tuninglab.cli import main; main(['finetune', '--help'])",
        "from tuninglab.cli import main; main(['finetune', '--batch_size', '0'])",
    ],
)
def test_help_and_flags_load_nothing_heavy(start):
    done = subprocess.run(
        [sys.executable, "-c", f"{start}\n{HEAVY}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["finetune", "--data", "nope.jsonl"], "nope.jsonl does not exist"),
        (["finetune", "--data", "empty.jsonl"], "empty.jsonl is empty"),
        (["finetune", "--data", "some.jsonl", "--val_data", "."], ". is no folder of data that is"),
        (["finetune", "--data", "some.jsonl", "--image_root", "pics"], "root pics is no folder"),
        (["finetune", "--model", "nope"], "there is no directory nope"),
        (["finetune", "--model", "some.jsonl"], "some.jsonl is a file; give the directory"),
        (["finetune", "--lang_encoder", "lm", "--vision_encoder", "v"], "no directory lm"),
        (["finetune", "--config", "nope.yaml"], "nope.yaml: No such file"),
        (["data", "nope.jsonl"], "nope.jsonl does not exist"),
        (["data", "some.jsonl", "--model", "nope"], "there is no directory nope"),
        (["flan-t5", "--data", "nope"], "nope does not exist"),
        (["chat", "nope"], "there is no directory nope"),
        (["chat", "--image", "nope.png"], "There is no picture nope.png"),
        (["chat", "--image", "some.jsonl"], "is not a picture of a known kind"),
    ],
)
def test_a_mistyped_file_is_told_before_anything_heavy_is_loaded(words, said, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "some.jsonl").write_text("{}")
    start = f"""
import sys, time
from tuninglab.cli import main
code = main({words!r})
heavy = sorted({{'torch', 'transformers', 'peft', 'accelerate'}} & {{*sys.modules}})
print(code, heavy, time.process_time() < 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", start],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "2 [] True\n", done.stderr
    assert said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", ["finetune --print_config", "--help"])
def test_a_reader_that_stops_early_is_no_error(words):
    command = f"{sys.executable} -m tuninglab {words} | true"
    done = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_the_module_and_the_torchrun_script_are_the_same_command():
    for command in (["-m", "tuninglab", "finetune"], ["fine_tuning.py"]):
        done = subprocess.run(
            [sys.executable, *command, "--seed", "-1", " "],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("--seed is -1;")


def test_every_row_of_the_table_names_what_is_there():
    from importlib import import_module

    for verb in cli.VERBS.values():
        work = getattr(import_module(f"tuninglab.{verb.room}"), verb.work)
        assert list(get_type_hints(work).values())[0] is verb.settings()


@pytest.mark.parametrize(
    ("streams", "code"),
    [
        (">&-", 0),
        ("2>&-", 0),
        (">&- 2>&-", 0),
        ("<&- >&- 2>&-", 0),
        ("2>/dev/full", 0),
        (">&- 2>/dev/full", 0),
        (">/dev/full", 1),
        ("2> >(true)", 0),
    ],
)
def test_streams_that_are_closed_or_full_stop_no_work(streams, code, tmp_path):
    work = """
import sys, time
from pathlib import Path
from tuninglab import cli, console
def work():
    time.sleep(0.2)  # until a reader has gone
    for _ in range(3000): console.say('a note')
    Path('done').write_text('whole')
    print('the result')
console.open_streams()
sys.exit(cli.run_command(work))
"""
    (tmp_path / "work.py").write_text(work)
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} work.py {streams}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert (tmp_path / "done").read_text() == "whole"


def test_a_name_that_the_locale_cannot_write_says_what_to_set(tmp_path):
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0"}
    environment |= {"PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tuninglab", "finetune", "--run_name", "xü"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "--run_name" in done.stderr and "PYTHONUTF8=1" in done.stderr

"""Commands that are printed can be pasted as they stand, whatever PATH finds."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tuninglab.console import program

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A stand-in for an environment in a folder whose name needs quotes; nothing is on PATH."""
    bin_folder = tmp_path / "my venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(bin_folder / "python"))
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return bin_folder


def script(folder: Path, name: str = "tuninglab") -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\necho ran\n")
    path.chmod(0o755)
    return path


def test_the_bare_name_only_where_path_finds_this_very_program(environment, tmp_path, monkeypatch):
    script(environment)
    assert program() == "'my venv/bin/tuninglab'"
    other = tmp_path / "other"
    other.mkdir()
    script(other)
    # Another environment is active: its program would not know this run's package.
    monkeypatch.setenv("PATH", str(other))
    assert program() == "'my venv/bin/tuninglab'"
    monkeypatch.setenv("PATH", f"{environment}{os.pathsep}{other}")
    assert program() == "tuninglab"
    # What pipx does.
    (other / "tuninglab").unlink()
    (other / "tuninglab").symlink_to(environment / "tuninglab")
    monkeypatch.setenv("PATH", str(other))
    assert program() == "tuninglab"


@pytest.mark.parametrize("where", [".", "my venv", "my venv/bin", "far/away/from/here/it/all"])
def test_what_is_printed_runs_from_where_it_is_printed(environment, tmp_path, monkeypatch, where):
    script(environment)
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / where)
    done = subprocess.run(["/bin/bash", "-c", program()], capture_output=True, text=True)
    assert done.stdout == "ran\n", (program(), done.stderr)


def test_a_script_elsewhere_than_python_is_the_one_that_was_started(environment, monkeypatch):
    own = environment.parent.parent / "local"
    own.mkdir()
    monkeypatch.setattr(sys, "argv", [str(script(own))])
    assert program() == "local/tuninglab"
    monkeypatch.setenv("PATH", str(own))
    assert program() == "tuninglab"


def test_without_a_script_it_is_the_module(environment, monkeypatch):
    # The package is found by where a script of the checkout lies, and by nothing else.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    setting, python, *rest = shlex.split(program())
    assert (setting, python) == (f"PYTHONPATH={ROOT}", "my venv/bin/python")
    assert rest == ["-m", "tuninglab"]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert program() == "'my venv/bin/python' -m tuninglab"
    assert program("torchrun", "torch.distributed.run").endswith("-m torch.distributed.run")
    monkeypatch.setenv("PATH", str(environment))
    assert program() == "python -m tuninglab"


def test_the_printed_line_runs_in_a_shell_that_finds_nothing(tmp_path):
    bare = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}

    def started(*command):
        return subprocess.run(command, capture_output=True, text=True, env=bare, cwd=tmp_path)

    told = started(sys.executable, "-m", "tuninglab", "frobnicate").stderr
    line = re.search(r"see (.*) --help\.", told)[1]
    done = started("bash", "-c", f"{line} --version")
    assert done.stdout.startswith("tuninglab "), (line, done.stderr)

"""The recipes are settings that a run takes, and fit the machine that they are written for."""

import re
import shlex

import pytest

from tests.documents import ROOT
from tuninglab.config import FinetuneConfig, PlanConfig
from tuninglab.config.flags import parse
from tuninglab.config.yaml_file import read_config
from tuninglab.recipes.plan import plan

FILES = sorted((ROOT / "recipes").glob("*.yaml"))


def header(path) -> dict[str, str]:
    """The lines of a recipe's header by their first word: plan, command, memory, time, score ..."""
    return dict(re.findall(r"^#   (\w+) +(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_costs_and_its_commands_parse(path):
    said = header(path)
    assert {"plan", "command", "memory", "time", "score"} <= said.keys()
    read_config(path, FinetuneConfig)
    for name, verb in (("plan", "plan"), ("command", "finetune")):
        words = shlex.split(said[name])
        assert words[words.index("--config") + 1] == str(path.relative_to(ROOT))
        assert verb in words or "fine_tuning.py" in words
    before, _, flags = said["command"].partition("--config")
    assert before.split()[-1] in ("finetune", "fine_tuning.py")
    parse("tuninglab finetune", FinetuneConfig, shlex.split(f"--config{flags}"))


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_fits_its_machine_and_takes_what_it_says(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    said = header(path)
    words = shlex.split(said["plan"])[2:]
    figures, _, error = plan(parse("tuninglab plan", PlanConfig, words))
    assert error is None and figures["fits"]
    total = figures["peak_memory_mib"]["total"]
    if "cuda" in words:
        # A GPU holds no process and no heap: the same wherever it is planned.
        assert said["memory"] == f"{total / 1024:.1f} GiB on each device, planned"

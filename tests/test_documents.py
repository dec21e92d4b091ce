"""README and docs do what they say: their commands run, their Python prints what is shown."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

from tests.documents import (
    PAGES,
    ROOT,
    all_blocks,
    blocks,
    commands,
    copy_checkout,
    inline_commands,
    put_stand_ins,
)
from tests.warm import Warm
from tuninglab import cli, config
from tuninglab.config import ConvertConfig, flags
from tuninglab.config.tuning import TuningConfig
from tuninglab.conversion.convert import convert
from tuninglab.models.conditioning import count_text_time

# By the first words of a command (variables before it aside): flags that make it short. A command
# that none of them begins is unknown, and fails.
FEW = "--max_steps 2"
FLAGS = {
    "make": "--dry-run",  # the environment is there already, and the suite is what runs this
    "python flan_t5.py": f"{FEW} --embedded_pairs 64",
    "python flamingo.py": f"{FEW} --embedded_pictures 8",
    "torchrun": f"{FEW} --embedded_pictures 8",
    "tuninglab flan-t5 --enable_int8": f"{FEW} --embedded_pairs 64",
    "tuninglab flan-t5 --run_name pairs": FEW,
    "tuninglab finetune --enable_int8": f"{FEW} --embedded_pictures 8",
    "tuninglab finetune --lang_encoder": FEW,
    "tuninglab finetune --config": FEW,
    "tuninglab finetune --run_name mine": f"{FEW} --model my_flamingo",
    "tuninglab data": "",
    "tuninglab plan": "--model my_flamingo",
    "tuninglab report": "",
    "tuninglab evaluate": "--limit 4",
    "tuninglab chat": "--max_new_tokens 4",
    "tuninglab export": "--check 2",
    "tuninglab convert --inspect": "",
    "tuninglab convert --from open_flamingo": "",
    # The checkpoint that the other commands read lies there already.
    "tuninglab convert --to open_flamingo": "--overwrite",
}
# Do not run here, and why.
MINUTES = "ten processes measure memory: minutes; tests/comparison runs it on small shapes"
CANNOT = {
    "conda env create -f environment.yml": "needs conda, which downloads a Python",
    "tuninglab flan-t5 --compare": MINUTES,
    "tuninglab finetune --compare": MINUTES,
    "tuninglab serve runs/mine": "serves until it is stopped; tests/serving does, with its clients",
    "conda activate tuninglab": "the environment that was not made",
    "source .venv/bin/activate": "the environment that a dry run does not make",
}


@pytest.fixture(scope="module")
def first_checkout(tmp_path_factory, tiny_bases, take_apart):
    """A copy of the checkout with smaller sizes, and what the pages call the reader's own."""
    folder = tmp_path_factory.mktemp("checkout")
    copy_checkout(folder)
    put_stand_ins(folder, tiny_bases["plain"], take_apart)
    paths = {"model": str(folder / "my_flamingo"), "out": str(folder / "checkpoint.pt")}
    convert(ConvertConfig(to="open_flamingo", **paths))
    return folder


@pytest.fixture
def checkout(first_checkout, tmp_path):
    """A copy of that copy, in which a block of commands may leave what it likes."""
    shutil.copytree(first_checkout, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def warm(first_checkout):
    """The verbs of the first copy, with torch loaded already."""
    with Warm(first_checkout) as verbs:
        yield verbs


def short(command: str) -> str:
    """A command with the flags that make it short."""
    bare = re.sub(r"^(\w+=\S+ )+", "", command)
    (known,) = [words for words in FLAGS if bare.startswith(words)] or [None]
    assert known is not None, f"add to FLAGS or CANNOT: {command}"
    return f"{command} {FLAGS[known]}"


@pytest.mark.slow
@pytest.mark.parametrize("block", all_blocks("bash"), ids=str)
def test_the_commands_of_the_pages_run(block, checkout, warm):
    here = checkout
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(checkout)}
    for command in commands(block):
        if command in CANNOT:
            continue
        if command.startswith("cd "):
            here = here / command.removeprefix("cd ")
            continue
        said = "What is on the table?\n"
        if command.startswith("tuninglab "):
            done = warm.run(shlex.split(short(command))[1:], here, {"PATH": path}, said)
        else:
            done = subprocess.run(
                ["bash", "-c", short(command)],
                cwd=here,
                env=environment,
                input=said,
                capture_output=True,
                text=True,
            )
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        # It ran in the copy: nothing came from another checkout that is installed here.
        assert str(ROOT) not in done.stderr


@pytest.mark.parametrize("block", all_blocks("bash"), ids=str)
def test_every_command_is_known_and_its_folder_there(block):
    here = ROOT
    for command in commands(block):
        if command.startswith("cd "):
            here = here / command.removeprefix("cd ")
            assert here.is_dir()
        elif command not in CANNOT:
            words = short(command).split()
            scripts = [word for word in words if word.endswith(".py")]
            assert all((here / script).is_file() for script in scripts)


def test_an_unknown_command_fails():
    with pytest.raises(AssertionError, match="add to FLAGS or CANNOT: tuninglab frobnicate"):
        short("tuninglab frobnicate")


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_prints_what_stands_below_it(page, checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block.code, str(block), "exec"), names)
        printed = capsys.readouterr().out
        assert printed == (block.shown or ""), block
    assert page.name != "generation.md" or len(blocks(page, "python")) >= 5
    # The README's configuration is what TuningConfig takes, and its model one that answers.
    if page.name == "README.md":
        tuning = TuningConfig.from_dict(names["tuning_config"])
        assert tuning == TuningConfig()
        ids = names["processor"](text=["a"], images=[[]])["input_ids"]
        assert torch.isfinite(names["model"](input_ids=ids).logits).all()


def flags_of(settings: type) -> set[str]:
    """Names that flags of a verb begin with."""
    names = {name.partition(".")[0].rstrip("_") for name in flags.flags_of(settings)}
    return names | {name.replace("_", "-") for name in names}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_flags_and_places_that_the_prose_names_are_there(page):
    quoted = [*inline_commands(page, "tuninglab"), *map(" ".join, said_commands(page))]
    for command in quoted:
        _, *words = shlex.split(re.sub(r"[\[\]]", "", command))
        if not words or words[0].startswith("-"):
            continue
        assert words[0] in cli.VERBS, command
        known = flags_of(getattr(config, cli.VERBS[words[0]].config))
        for word in words[1:]:
            flag = word.removeprefix("--").partition("=")[0].partition(".")[0]
            assert not word.startswith("--") or flag in known, f"{command}: {word}"
    for command in inline_commands(page, "python"):
        words = command.split()
        there = (ROOT / words[1]).is_file() if words[1] != "-m" else True
        assert there, command
        if words[1] == "-m":
            importlib.import_module(words[2])


def said_commands(page) -> list[list[str]]:
    """The commands of a page's bash blocks that are verbs of ours."""
    said = [command.split() for block in blocks(page, "bash") for command in commands(block)]
    return [words for words in said if words[0] == "tuninglab"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_flags_and_modules_of_the_prose_are_there(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    every = set().union(*(flags_of(getattr(config, verb.config)) for verb in cli.VERBS.values()))
    for flag in re.findall(r"`--(\w+)", text):
        assert flag in every | {"seeds", "rounds"}, flag
    for place in re.findall(r"`((?:tuninglab|benchmarks|docs|tests|tools)/[\w./]*)`", text):
        assert (ROOT / place).exists(), place
    for name in set(re.findall(r"`(tuninglab(?:\.\w+)+)`", text)) - {"tuninglab.json"}:
        importlib.import_module(name)


def test_the_modules_of_the_change_log_are_where_it_says():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.*?)` \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) > 10
    for old, now in rows:
        for name in re.findall(r"`([a-z_0-9.]+)`", now):
            if name != "lora" and name != "pieces" and name != "library":
                importlib.import_module(f"tuninglab.{name}")
        # Doors keep their names; what they did has moved.
        for name in set(old.split("`, `")) - {"flamingo", "flan_t5"}:
            path = ROOT / "tuninglab" / name.replace(".", "/")
            assert not path.with_suffix(".py").exists(), name


def test_the_tree_of_the_readme_is_the_tree():
    text = PAGES[0].read_text(encoding="utf-8")
    tree = re.search(r"## Where things are\n.*?```\n(.*?)```", text, re.S)[1]
    named = set()
    for line in tree.splitlines():
        inside = line.startswith("  ")
        for word in re.split(r"\s{2,}", line.strip())[0].split():
            place = ROOT / ("tuninglab/" if inside else "") / word
            assert place.exists(), word
            named.add(place.resolve())
    rooms = {path for path in (ROOT / "tuninglab").iterdir() if path.name[0] not in "_."}
    assert {path for path in rooms if path.is_dir() and path.name != "runs"} <= named


def test_the_table_of_media_modes_is_what_is_counted():
    text = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    ids = torch.tensor([[9, 1, 1, 9, 1, 1]])
    for mode in ("previous", "next-v1"):
        (row,) = re.findall(rf"^\| `{mode}`[^|]*\|(.*)\|$", text, re.MULTILINE)
        assert [int(cell) for cell in row.split("|")] == count_text_time(ids, 9, mode)[0].tolist()

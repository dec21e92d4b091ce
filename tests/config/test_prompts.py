"""What `--prompt` may be, and what a run keeps of it."""

import os

import pytest
import yaml

from tuninglab.config import FinetuneConfig, FlanT5Config
from tuninglab.config.prompts import LARGEST_TEMPLATE, PROMPTS, kept_prompt
from tuninglab.config.yaml_file import config_yaml, read_config
from tuninglab.data.prompt_formats import NAMED
from tuninglab.errors import UserError

TEMPLATE = "{% for m in messages %}{{ m.content }}…\n{% endfor %}"


def test_the_names_are_those_that_there_are():
    assert set(PROMPTS) == {*NAMED, "chat_template"}
    assert FinetuneConfig().prompt == "tuninglab" and not hasattr(FlanT5Config(), "prompt")


def test_of_a_file_its_text_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jinja").write_text(TEMPLATE, encoding="utf-8")
    config = FinetuneConfig(prompt="mine.jinja")
    config.validate()
    located = config.located()
    (tmp_path / "mine.jinja").unlink()
    assert located.prompt == TEMPLATE == located.located().prompt
    (tmp_path / "config.yaml").write_text(config_yaml(located), encoding="utf-8")
    again = read_config(tmp_path / "config.yaml", FinetuneConfig)
    again.validate()
    assert again.prompt == TEMPLATE
    assert yaml.safe_load(config_yaml(FinetuneConfig()))["prompt"] == "tuninglab"


@pytest.mark.parametrize("name", PROMPTS)
def test_a_name_is_a_name_whatever_lies_here(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(TEMPLATE)
    assert kept_prompt(name) == name


def test_what_is_neither_is_refused(tmp_path):
    plain, large, pipe = (tmp_path / name for name in ("plain", "large", "pipe"))
    plain.write_text("### Question: ")
    large.write_text(TEMPLATE + " " * LARGEST_TEMPLATE)
    os.mkfifo(pipe)
    for value, said in {
        "oter": "'oter'; expected one of tuninglab, .* Did you mean otter",
        "": "expected one of",
        str(tmp_path / "gone.jinja"): "expected one of .* or the path of a Jinja file",
        str(plain): "it is no Jinja template",
        str(large): "larger than 65,536 bytes",
        large.read_text(): "more than 64 KiB",
        str(tmp_path): "a folder",
        str(pipe): "a pipe",
        "a\0b": "NUL",
        "x" * 5000: "longer than file names",
    }.items():
        with pytest.raises(UserError, match=said) as told:
            FinetuneConfig(prompt=value).validate()
        assert str(told.value).startswith("--prompt") and len(str(told.value)) < 1000

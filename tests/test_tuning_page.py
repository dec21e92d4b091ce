"""docs/tuning.md says what the settings are."""

import re
from dataclasses import fields
from typing import get_args

import pytest

from tests.documents import ROOT, blocks
from tuninglab.adapters.lora import check_patterns
from tuninglab.config import FinetuneConfig
from tuninglab.config.tuning import INITS, NO_INITS, Part, TuningConfig
from tuninglab.config.yaml_file import read_config

PAGE = ROOT / "docs" / "tuning.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("block", blocks(PAGE, "yaml"), ids=str)
def test_its_file_is_one_that_tunes(block, tmp_path, tiny_flamingo):
    (tmp_path / "a.yaml").write_text(block.code)
    config = read_config(tmp_path / "a.yaml", FinetuneConfig)
    config.validate()
    assert config != FinetuneConfig()
    check_patterns(tiny_flamingo(), config.tuning_config)


def test_its_tables_have_every_part_and_start_and_no_other_setting():
    assert blocks(PAGE, "yaml")
    rows = re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    settings = {field.name for field in fields(TuningConfig)}
    assert named - settings == set(get_args(Part))
    for init in INITS.replace(r"\d+", "N").split("|"):
        assert f"`{init}`" in TEXT
    assert all(f"`{init}`" in TEXT for init in NO_INITS)

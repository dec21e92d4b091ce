"""The command that trains on the data that was looked at."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from tuninglab.config import DataConfig
from tuninglab.config.data import DataPart, ReadingConfig, parts_of
from tuninglab.config.fields import leaves, names_of
from tuninglab.console import program
from tuninglab.data.reading.groups import groups_of, keys_of
from tuninglab.data.sources import Source
from tuninglab.reporting.data_reader import Reader


def fitting_command(
    config: DataConfig, figures: Mapping[str, Any], train: Sequence[Source], reader: Reader
) -> str:
    """The `finetune` command of these settings, quoted for a shell.

    Args:
        config: what the user gave.
        figures: what was found.
        train: the training samples.
        reader: whose tokenizer read them.
    """
    words = ["--config", config.config] if config.config else []
    for name in ("data", "val_data"):
        parts = parts_of(getattr(config, name)) or []
        # Weights and the like stand in the file alone.
        if parts and all(part == DataPart(part.path) for part in parts):
            words += [f"--{name}", *(part.path for part in parts)]
    if not reader.flamingo:
        words += ["--lang_encoder", reader.base, "--vision_encoder", "VISION_TOWER"]
    elif reader.base != "embedded":
        words += ["--model", reader.base]
    given, usual = leaves(config), leaves(DataConfig())
    for name in [*names_of(ReadingConfig), "seed"]:
        if given[name] != usual[name]:
            words += [f"--{name}", _word(given[name])]
    if config.val_data is None and can_be_split(train):
        words += ["--val_split", "0.1"]
    if config.max_tokens or figures["tokens"]["overlong"]:
        words += ["--max_tokens", str(reader.longest)]
    if config.skip_bad_records or figures["problems"]:
        words += ["--skip_bad_records"]
    return f"{program()} finetune {shlex.join(words)}"


def can_be_split(train: Sequence[Source]) -> bool:
    """Whether records can be held out of each source: not all share their pictures."""
    return all(len(groups_of(keys)) > 1 for keys in keys_of(train))


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

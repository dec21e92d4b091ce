"""Settings in YAML: a file into a config dataclass, checked key by key, and back into text."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tuninglab.config import DataConfig, FinetuneConfig, FlanT5Config
from tuninglab.config.data import compact, parts_of, split_path
from tuninglab.config.fields import build, marked, named_in, settings_of, spellings
from tuninglab.config.marks import Mark
from tuninglab.config.training import TrainingConfig
from tuninglab.errors import UserError
from tuninglab.untrusted import read_text

Config = TypeVar("Config")

# Reading takes 10 s a MiB.
LARGEST = 256 * 1024
MOST_ALIASES = 10
REMEDY = "Correct it there: settings are `name: value`, one a line."


def config_yaml(config: Any) -> str:
    """Write a config as YAML, in the order of its fields, without what only concerns one call."""
    call = marked(type(config), Mark.CALL)
    values = asdict(config)
    settings = {f.name: values[f.name] for f in settings_of(config) if f.name not in call}
    for name in {"data", "val_data"} & settings.keys():
        settings[name] = compact(parts_of(getattr(config, name), name))
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)


def read_config(path: str | Path, config_class: type[Config]) -> Config:
    """Read a YAML file of settings; fields that it does not name keep their defaults.

    Raises:
        UserError: the file is missing or not YAML (with the line), or a key or value is unknown.
    """
    settings = _load(path)
    if config_class is DataConfig and isinstance(settings, Mapping):
        # The file of a training will do: what concerns that alone changes nothing of its data.
        own, training = _keys(DataConfig), _keys(FinetuneConfig)
        settings = {key: v for key, v in settings.items() if key in own or key not in training}
    return _read(settings, config_class, path)


def read_recipe(path: str | Path) -> TrainingConfig:
    """Read the config.yaml of a run, as the settings of the recipe that made it.

    Raises:
        UserError: as `read_config`.
    """
    # Runs from before there were two recipes do not name theirs.
    config_class = FlanT5Config if recipe_named(path) == FlanT5Config.recipe else FinetuneConfig
    return read_config(path, config_class)


def recipe_named(path: str | Path) -> str | None:
    """The recipe that a YAML file of settings names; None: it names none.

    Raises:
        UserError: the file is missing or not YAML.
    """
    settings = _load(path)
    name = settings.get("recipe") if isinstance(settings, Mapping) else None
    return name if isinstance(name, str) else None


def _keys(config_class: Any) -> set[str]:
    """All names that a file may have for settings, other spellings too."""
    return {field.name for field in settings_of(config_class)} | {*spellings(config_class)}


def _read(settings: object, config_class: type[Config], path: str | Path) -> Config:
    config = build(settings, config_class, f"--config {path}: ")
    if isinstance(config, TrainingConfig) and isinstance(settings, Mapping):
        config.typed = frozenset(named_in(settings, config_class))
    return config


@contextmanager
def file_named(config: Any) -> Iterator[None]:
    """In mistakes about a file, folder or model that a --config file names, say which file it is.

    Raises:
        UserError: as what is done inside.
    """
    try:
        yield
    except UserError as error:
        path = getattr(config, "config", None)
        if path is None or not any(name in str(error) for name in _named_in(path, config)):
            raise
        raise UserError(f"{error}\n--config {path} names it.") from error


def _named_in(path: str, config: TrainingConfig) -> list[str]:
    """The files, folders and models of some settings that their file names, and no flag."""
    there = read_config(path, type(config))
    names = marked(type(config), Mark.PATH) & (there.typed or frozenset())
    # A run that has begun has them absolute.
    ours, theirs = config.located(), there.located()
    same = [name for name in names if getattr(ours, name) == getattr(theirs, name)]
    found = [getattr(form, name) for name in same for form in (there, theirs)]
    for name in {"data", "val_data"} & (there.typed or frozenset()):
        if getattr(ours, name) == getattr(theirs, name):
            parts = [parts_of(getattr(form, name)) or [] for form in (there, theirs)]
            found += [path for of in parts for part in of for path in split_path(part.path)[0]]
    return found


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader that takes few aliases: nested, they stand for more than memory holds."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node; see yaml.composer."""
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MOST_ALIASES:
                mark = self.peek_event().start_mark
                raise yaml.MarkedYAMLError(
                    problem=f"more than {MOST_ALIASES} aliases", problem_mark=mark
                )
        return super().compose_node(parent, index)


def load_yaml(text: str) -> object:
    """The content of a YAML text that anybody may have written.

    Raises:
        yaml.YAMLError: it is none, or has more than a few aliases.
        ValueError: it has a value that is none, e.g. the 99th of a month.
        RecursionError: it is nested too deep.
    """
    return yaml.load(text, _Loader)


def _load(path: str | Path) -> object:
    text = read_text(path, LARGEST, "--config").removeprefix("\ufeff")
    try:
        settings = load_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}" if mark else "unknown line"
        raise UserError(
            f"--config {path}, {where}: broken YAML ({error.problem}). {REMEDY}"
        ) from error
    # ValueError: a date that is none, e.g. 2024-99-99; RecursionError: thousands of brackets.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        nested = isinstance(error, RecursionError)
        problem = "brackets nested too deeply" if nested else str(error).splitlines()[0]
        raise UserError(f"--config {path}: broken YAML ({problem}). {REMEDY}") from error
    if settings is None:
        raise UserError(f"--config {path}: empty. Give settings as `name: value`, one a line.")
    return settings

"""Settings in YAML: a file into a config dataclass, checked key by key, and back into text."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from tuninglab.config import FinetuneConfig, FlanT5Config
from tuninglab.config import tuning as tuning_config
from tuninglab.config.training import TrainingConfig
from tuninglab.errors import UserError

Config = TypeVar("Config")

# How one call behaves, not what the run is: they do not belong into a run's config.yaml.
CALL_ONLY = ("config", "print_config", "resume", "overwrite", "json", "debug")

REMEDY = "Correct it there: settings are `name: value`, one a line."


def config_yaml(config: Any) -> str:
    """Write a config as YAML, in the order of its fields, without what only concerns one call."""
    settings = {key: value for key, value in asdict(config).items() if key not in CALL_ONLY}
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)


def read_config(path: str | Path, config_class: type[Config]) -> Config:
    """Read a YAML file of settings; fields that it does not name keep their defaults.

    Raises:
        UserError: the file is missing or not YAML (with the line), or a key or value is unknown.
    """
    return _build(_load(path), config_class, f"--config {path}")


def read_recipe(path: str | Path) -> TrainingConfig:
    """Read the config.yaml of a run, as the settings of the recipe that made it.

    Raises:
        UserError: as `read_config`.
    """
    settings = _load(path)
    name = settings.get("recipe") if isinstance(settings, Mapping) else None
    # Runs from before there were two recipes do not name theirs.
    config_class = FlanT5Config if name == FlanT5Config.recipe else FinetuneConfig
    return _build(settings, config_class, f"--config {path}")


def _load(path: str | Path) -> object:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        settings = yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}. Give a YAML file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: not UTF-8 text. Save it as UTF-8.") from error
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


def _build(settings: object, config_class: type[Config], where: str) -> Config:
    if not isinstance(settings, Mapping):
        kind = type(settings).__name__
        raise UserError(f"{where}: holds a {kind}; expected `name: value` lines.")
    hints = _field_types(config_class)
    aliases = _aliases(config_class)
    values = {}
    for written, value in settings.items():
        key = aliases.get(written, written)
        if key not in hints:
            raise UserError(f"{where}: {_unknown(key, list(hints))}")
        if key in values:
            raise UserError(f"{where}: {key} is given twice, once as {written}.")
        values[key] = _convert(value, hints[key], f"{where}, {key}")
    return config_class(**values)


def _field_types(config_class: type) -> dict[str, Any]:
    # The hints alone would take class variables for settings.
    hints = get_type_hints(config_class)
    return {field.name: hints[field.name] for field in fields(config_class)}


def _aliases(config_class: type) -> dict[str, str]:
    """Other spellings of the fields, as the flags have them."""
    tuning = issubclass(config_class, tuning_config.LoraTuning)
    names = dict(tuning_config.ALIASES) if tuning else {}
    for field, hint in get_type_hints(config_class, include_extras=True).items():
        for mark in getattr(hint, "__metadata__", ()):
            names |= {alias.lstrip("-"): field for alias in getattr(mark, "aliases", None) or ()}
    return names


def _unknown(key: object, known: list[str]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown key {key!r}.{hint} Known keys: {', '.join(known)}."


def _convert(value: object, hint: Any, where: str) -> Any:
    """Turn one YAML value into a field's type.

    Raises:
        UserError: the value is of another type.
    """
    choices = get_args(hint)
    # tuning_config is a mapping in the file and `--tuning_config.r` on the command line.
    if is_dataclass(hint):
        return _build({} if value is None else value, hint, where)  # pyright: ignore[reportArgumentType]
    if type(None) in choices:
        return None if value is None else _convert(value, choices[0], where)
    if get_origin(hint) is Literal:
        return _expect(value in choices, value, f"one of {', '.join(choices)}", where)
    if get_origin(hint) is list:
        # One name may stand without brackets, as it may on the command line.
        values = value if isinstance(value, list) else [value]
        return [_convert(one, choices[0], where) for one in values]
    if hint is float:
        return _number(value, where)
    # bool is a kind of int in Python, but `batch_size: true` is a mistake.
    matches = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    names = {int: "a whole number", str: "text (in quotes if it looks like a number)"}
    return _expect(matches, value, names.get(hint, "true or false"), where)


def _number(value: object, where: str) -> float:
    # YAML 1.1 reads 1e-5 as text (it wants 1.0e-5); the source document's spelling must work.
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    return _expect(False, value, "a number", where)


def _expect(matches: bool, value: object, expected: str, where: str) -> Any:
    if not matches:
        raise UserError(f"{where}: is {value!r}; expected {expected}.")
    return value

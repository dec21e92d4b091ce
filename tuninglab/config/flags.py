"""Command-line words into a config dataclass, by tyro, with a `--config` file underneath."""

from collections.abc import Sequence
from typing import Any, TypeVar, get_type_hints

from tuninglab.console import is_main_process

Config = TypeVar("Config")

TRUTHS = ("true", "false")


def parse(prog: str, config_class: type[Config], argv: Sequence[str]) -> Config:
    """Parse flags over the settings of a `--config` file over the defaults, and check the ranges.

    Raises:
        UserError: a setting is out of range, or the file is wrong.
        SystemExit: help was asked for, or tyro refused a flag (its message is printed).
    """
    # 0.15 s, and only needed when a verb is parsed.
    import tyro

    words = spell_out_switches(without_blanks(argv), config_class)

    def read(**defaults: Any) -> Any:
        return tyro.cli(
            config_class,
            prog=prog,
            args=words,
            use_underscores=True,
            # tyro's own switches are --x and --no-x; ours are spelled out to --x True.
            config=(tyro.conf.FlagConversionOff,),
            console_outputs=is_main_process(),
            **defaults,
        )

    # The file's name is itself a flag, so the flags are read once without its settings.
    config = read()
    if getattr(config, "config", None) is not None:
        from tuninglab.config.yaml_file import read_config

        config = read(default=read_config(config.config, config_class))
    config.validate()
    return config


def without_blanks(argv: Sequence[str]) -> list[str]:
    """Drop blank words: a backslash and a blank at a line's end (source document) leave one."""
    return [word for word in argv if word.strip()]


def spell_out_switches(words: list[str], config_class: type) -> list[str]:
    """Turn `--x`, `--x true` and `--x=true` of a boolean field into tyro's `--x True`."""
    switches = _switch_names(config_class)
    spelled, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name[2:].replace("-", "_") not in switches:
            spelled.append(word)
            continue
        if not equals:
            # The next word is a value only if it reads as one: `report --json RUN` works.
            value = rest.pop(0) if rest and rest[0].lower() in TRUTHS else "true"
        spelled += [name, value.capitalize() if value.lower() in TRUTHS else value]
    return spelled


def _switch_names(config_class: type, prefix: str = "") -> set[str]:
    names = set()
    annotations = get_type_hints(config_class, include_extras=True)
    for field, hint in get_type_hints(config_class).items():
        # A switch with None beside true and false says "not given", e.g. enable_int8.
        if hint in (bool, bool | None):
            # Other spellings hang at the annotation, as tyro's arg(aliases=...).
            marks = getattr(annotations[field], "__metadata__", ())
            aliases = [alias for mark in marks for alias in mark.aliases or ()]
            names |= {prefix + field, *(alias.lstrip("-") for alias in aliases)}
        elif hasattr(hint, "__dataclass_fields__"):
            names |= _switch_names(hint, f"{prefix}{field}.")
    return names

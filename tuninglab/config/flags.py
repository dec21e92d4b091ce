"""Command-line words into a config dataclass, by tyro, with a `--config` file underneath."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

from tuninglab.config.fields import marked, spellings
from tuninglab.config.help import help_of
from tuninglab.config.marks import Mark
from tuninglab.config.other_names import our_name
from tuninglab.config.training import TrainingConfig
from tuninglab.console import is_main_process
from tuninglab.errors import UserError

Config = TypeVar("Config")

TRUTHS = ("true", "false")

_words: frozenset[str] | None = None


class Flag(NamedTuple):
    """What a flag sets: the name of the field, `tuning_config.r` inside another, and its type.

    A `bare` flag may stand without a value, which is then `auto`.
    """

    field: str
    hint: Any
    bare: bool = False


@contextmanager
def command_line(argv: Sequence[str]) -> Iterator[None]:
    """While a verb runs: what its user typed, for `typed`."""
    global _words
    before = _words
    _words = frozenset(part for word in argv for part in (word, word.partition("=")[2]))
    try:
        yield
    finally:
        _words = before


def typed(value: str) -> bool:
    """Whether the user gave this value: on the command line, or to a function in Python."""
    return _words is None or value in _words


def parse(prog: str, config_class: type[Config], argv: Sequence[str]) -> Config:
    """Parse flags over the settings of a `--config` file over the defaults, and check the ranges.

    The settings of a training keep in `typed` which of them flags and file name.

    Raises:
        UserError: a setting is out of range or has another tool's name, or the file is wrong.
        SystemExit: help was asked for, or tyro refused a flag (its message is printed).
    """
    flags = flags_of(config_class)
    words = spell_out_switches(without_blanks(argv), flags)
    if issubclass(config_class, TrainingConfig) and {"-h", "--help"} & set(words):
        if is_main_process():
            print(help_of(prog, config_class))
        raise SystemExit(0)
    for name in filter(None, map(_flag_name, words)):
        if name not in flags and (ours := our_name(name, flags)):
            raise UserError(f"--{name} is called --{ours} here. {prog} --help lists all flags.")
    # 0.15 s, and only needed when a verb is parsed.
    import tyro

    def read(**defaults: Any) -> Any:
        """The settings that these words come to."""
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
    if hasattr(config, "typed"):
        found = [flags[name].field for name in map(_flag_name, words) if name in flags]
        config.typed = frozenset(found) | (config.typed or frozenset())
    config.validate()
    return config


def without_blanks(argv: Sequence[str]) -> list[str]:
    """Drop blank words: a backslash and a blank at a line's end (source document) leave one."""
    return [word for word in argv if word.strip()]


def given(words: Sequence[str], name: str) -> str | None:
    """The value that words of a command line give to a flag; None: they do not give it."""
    for word, following in zip_longest(words, words[1:]):
        if _flag_name(word) == name:
            return word.partition("=")[2] or following
    return None


def flags_of(config_class: type, prefix: str = "") -> dict[str, Flag]:
    """Every spelling of every flag, without its dashes."""
    hints, flags, bare = get_type_hints(config_class), {}, marked(config_class, Mark.BARE)
    for name in (field.name for field in fields(config_class)):
        hint = hints[name]
        if is_dataclass(hint):
            flags |= flags_of(hint, f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]
        else:
            flags[prefix + name] = Flag(prefix + name, hint, name in bare)
    # tyro gives these no prefix.
    other = spellings(config_class).items()
    return flags | {alias: Flag(prefix + name, hints[name]) for alias, name in other}


def spell_out_switches(words: list[str], flags: Mapping[str, Flag]) -> list[str]:
    """Turn `--x`, `--x true` and `--x=true` of a boolean field into tyro's `--x True`.

    And `--x` alone of a field that may stand so into `--x auto`.
    """
    spelled, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        flag = flags.get(_flag_name(word))
        if flag is not None and flag.bare and not equals and (not rest or rest[0].startswith("--")):
            spelled += [word, "auto"]
            continue
        # A switch with None beside true and false says "not given", e.g. enable_int8.
        if flag is None or bool not in (flag.hint, *get_args(flag.hint)):
            spelled.append(word)
            continue
        if not equals:
            # The next word is a value only if it reads as one: `report --json RUN` works.
            others = [name for kind in get_args(flag.hint) for name in get_args(kind)]
            value = rest.pop(0) if rest and rest[0].lower() in (*TRUTHS, *others) else "true"
        spelled += [name, value.capitalize() if value.lower() in TRUTHS else value]
    return spelled


def _flag_name(word: str) -> str:
    """Name of the flag that a word gives, whichever way it is hyphened; empty for other words."""
    return word[2:].partition("=")[0].replace("-", "_") if word.startswith("--") else ""

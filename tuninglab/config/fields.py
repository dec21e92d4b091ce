"""What the fields of a settings class say of themselves, and a mapping of values into one."""

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from inspect import get_annotations
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tuninglab.config.data import Data, compact, parts_of
from tuninglab.config.marks import Mark
from tuninglab.config.other_names import in_yaml, our_name
from tuninglab.errors import UserError
from tuninglab.untrusted import shown

Config = TypeVar("Config")


def marked(config_class: type, mark: Mark) -> set[str]:
    """Names of the fields that bear a mark."""
    return {name for name, found in _marks(config_class) if found is mark}


def spellings(config_class: type) -> dict[str, str]:
    """Other spellings of the fields, without dashes: tyro's arg(aliases=...) of each."""
    pairs = [(name, getattr(mark, "aliases", None) or ()) for name, mark in _marks(config_class)]
    return {alias.lstrip("-"): name for name, aliases in pairs for alias in aliases}


def settings_of(config_class: Any) -> list[Field]:
    """The fields that are settings: one that does not compare is a note about them."""
    return [field for field in fields(config_class) if field.compare]


def leaves(settings: Any, prefix: str = "") -> dict[str, Any]:
    """All settings by name, those inside another as `tuning_config.r`."""
    found: dict[str, Any] = {}
    for name in (field.name for field in settings_of(settings)):
        value = getattr(settings, name)
        inner = leaves(value, f"{prefix}{name}.") if is_dataclass(value) else {prefix + name: value}
        found |= inner
    return found


def names_of(config_class: Any, prefix: str = "") -> list[str]:
    """The names that `leaves` gives, from the class alone."""
    hints, found = get_type_hints(config_class), []
    for name in (field.name for field in settings_of(config_class)):
        inner = is_dataclass(hints[name])
        found += names_of(hints[name], f"{prefix}{name}.") if inner else [prefix + name]
    return found


def named_in(settings: Mapping[str, Any], config_class: type, prefix: str = "") -> set[str]:
    """Names that `leaves` has for the settings that a mapping gives."""
    hints, other, found = get_type_hints(config_class), spellings(config_class), set()
    for written, value in settings.items():
        name = other.get(written, written)
        inner = is_dataclass(hints[name]) and isinstance(value, Mapping)
        found |= named_in(value, hints[name], f"{prefix}{name}.") if inner else {prefix + name}
    return found


def build(settings: object, config_class: type[Config], where: str, prefix: str = "") -> Config:
    """Build a settings class from a mapping; names that it lacks keep their defaults.

    Args:
        settings: names, in any spelling that the flags have, to values.
        config_class: a dataclass.
        where: the settings come from, for messages.
        prefix: of the names, for messages.

    Raises:
        UserError: a name is unknown (the nearest is given) or stands twice, or a value is of
            another type.
    """
    if not isinstance(settings, Mapping):
        kind = type(settings).__name__
        what = f"{prefix.rstrip('.')} " if prefix else ""
        raise UserError(f"{where}{what}holds a {kind}; expected a mapping, `name: value` lines.")
    hints = get_type_hints(config_class)
    # The hints alone would take class variables for settings.
    known = [field.name for field in settings_of(config_class)]
    other = spellings(config_class)
    values: dict[str, Any] = {}
    for written, value in settings.items():
        name = other.get(written, written)
        if name not in known:
            raise UserError(f"{where}{_unknown(written, config_class, prefix)}")
        if name in values:
            raise UserError(f"{where}{prefix}{name} is given twice, once as {written}.")
        values[name] = _convert(value, hints[name], where, prefix + name)
    return config_class(**values)


def settle_types(settings: Any, where: str) -> None:
    """Give every setting the type of its field, in place: what was set in Python is not checked.

    Raises:
        UserError: a value is of another type, or none of the choices.
    """
    hints = get_type_hints(type(settings))
    for name in (field.name for field in settings_of(settings)):
        setattr(settings, name, _convert(getattr(settings, name), hints[name], where, name))


def _marks(config_class: type) -> Iterator[tuple[str, Any]]:
    # Over the classes above too: a field declared anew (another default) keeps its marks.
    for base in config_class.__mro__:
        for name, hint in get_annotations(base).items():
            yield from ((name, mark) for mark in getattr(hint, "__metadata__", ()))


def _unknown(written: object, config_class: type, prefix: str) -> str:
    known = [field.name for field in settings_of(config_class)]
    near = difflib.get_close_matches(str(written), [*known, *spellings(config_class)], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if ours := our_name(str(written), names_of(config_class, prefix)):
        hint = f" It is called `{in_yaml(ours)}` here."
    inside = f" in {prefix.rstrip('.')}" if prefix else ""
    return f"unknown key {shown(repr(written))}{inside}.{hint} Known keys: {', '.join(known)}."


def _convert(value: object, hint: Any, where: str, name: str) -> Any:
    choices = get_args(hint)
    # tuning_config is a mapping in a file and `--tuning_config.r` on the command line.
    if is_dataclass(hint):
        if isinstance(value, hint):  # pyright: ignore[reportArgumentType]
            return value
        return build({} if value is None else value, hint, where, f"{name}.")  # pyright: ignore
    if type(None) in choices:
        rest = Union[tuple(choice for choice in choices if choice is not type(None))]  # noqa: UP007
        return None if value is None else _convert(value, rest, where, name)
    if hint == Data:
        return compact(parts_of(value, f"{where}{name}"))
    # `auto` beside numbers, or beside true and false.
    if get_origin(hint) in (Union, UnionType):
        words = [choice for choice in choices if get_origin(choice) is Literal]
        if any(value in get_args(choice) for choice in words if isinstance(value, str)):
            return value
        (kind,) = [choice for choice in choices if choice not in words]
        return _convert(value, kind, where, name)
    if get_origin(hint) is list:
        # One name may stand without brackets, as it may on the command line.
        values = value if isinstance(value, (list, tuple)) else [value]
        return [_convert(one, choices[0], where, name) for one in values]
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise UserError(
                f"{where}{name} is {shown(repr(value))}; expected `name: number` lines."
            )
        return {k: _convert(one, choices[1], where, f"{name}.{k}") for k, one in value.items()}
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-5 as text (it wants 1.0e-5); the source document's spelling must work.
        try:
            return float(value)
        except (ValueError, OverflowError):
            value = value if isinstance(value, str) else math.inf
    names = {int: "a whole number", str: "text (in quotes if it looks like a number)"}
    expected = names.get(hint, "a number" if hint is float else "true or false")
    if get_origin(hint) is Literal:
        # YAML reads true and false as themselves.
        value = str(value).lower() if isinstance(value, bool) else value
        fits, expected = value in choices, f"one of {', '.join(choices)}"
    else:
        # bool is a kind of int in Python, but `batch_size: true` is a mistake.
        fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if not fits:
        raise UserError(f"{where}{name} is {shown(repr(value))}; expected {expected}.")
    return value

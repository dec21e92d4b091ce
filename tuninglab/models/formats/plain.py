"""What of a foreign checkpoint is plain data: the settings that lie beside its weights."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tuninglab.models.formats.records import Foreign

# Configurations have some hundred values, about 10 deep. Lists that share one another can have
# 10^10 when written out.
MOST_VALUES, DEEPEST = 100_000, 50


class TooMuch(Exception):
    """Values without end: more than any configuration has."""


def plain(value: Any) -> Any:
    """Dicts, lists, texts and numbers of a value; None for what is none of these.

    Of an object its dictionary is kept: the attributes, or the items of a Config.

    Raises:
        TooMuch: there are more than `MOST_VALUES`, or they are nested deeper than `DEEPEST`.
    """
    return _plain(value, (), iter(range(MOST_VALUES)))


def _plain(value: Any, seen: tuple[int, ...], left: Iterator[int]) -> Any:
    if next(left, None) is None or len(seen) > DEEPEST:
        raise TooMuch
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    # An object may hold itself.
    if id(value) in seen:
        return None
    seen = (*seen, id(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item, seen, left) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, seen, left) for item in value]
    return _of_object(value, seen, left) if isinstance(value, Foreign) else None


def _of_object(value: Foreign, seen: tuple[int, ...], left: Iterator[int]) -> Any:
    # A set is its list.
    if value.name == "builtins.set":
        return _plain(list(_flat(value.held)), seen, left)
    held = list(_flat(value.held))
    for item in held:
        if isinstance(item, Mapping):
            # mmengine 0.7 keeps the items of a Config in one attribute.
            inner = item.get("_cfg_dict")
            return _plain(inner if isinstance(inner, Mapping) else item, seen, left)
    # A path is its parts.
    return "/".join(held) if held and all(isinstance(item, str) for item in held) else None


def _flat(items: Iterable[Any]) -> Iterable[Any]:
    for item in items:
        yield from item if isinstance(item, tuple) else (item,)

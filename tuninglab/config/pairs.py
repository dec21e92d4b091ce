"""Mappings as flags: `--rank_pattern q_proj=8 ff.1=32`; in YAML they are mappings as they stand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tyro.constructors import PrimitiveConstructorSpec


def pairs(shape: str, number: Callable[[str], Any]) -> Any:
    """How tyro reads a flag of `name=number` words; annotates a `dict[str, ...]`.

    Args:
        shape: of one word, for --help and messages.
        number: int or float.
    """

    def read(words: Sequence[str]) -> dict[str, Any]:
        """Words to a mapping; raises ValueError, which tyro tells as a wrong value."""
        found: dict[str, Any] = {}
        for word in words:
            # From the right: a regular expression may hold an equals sign.
            name, _, value = word.rpartition("=")
            if not name or name in found:
                raise ValueError(f"{word!r} is not {shape}" if not name else f"{name!r} twice")
            found[name] = number(value)
        return found

    def write(values: Mapping[str, Any]) -> list[str]:
        return [f"{name}={value}" for name, value in values.items()]

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[{shape} [{shape} ...]]",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=write,
    )

"""Range checks of settings; a refusal names the flag, the value, what is expected, the remedy."""

import re

from tuninglab.errors import UserError
from tuninglab.untrusted import check_path, shown

# A name of more bytes is refused by the usual file systems (NAME_MAX is 255 on Linux).
LONGEST_NAME = 200
# Of counts: no training has a billion steps, and what follows from them still fits everywhere.
MOST = 10**9
# Of rates and factors: their products stay far below what 32 bits hold.
MOST_RATE = 1000.0


def check(holds: bool, flag: str, value: object, expected: str, remedy: str = "") -> None:
    """Refuse a setting that does not hold.

    Raises:
        UserError: with the flag, the value given, what is expected and what to do.
    """
    if not holds:
        raise UserError(f"--{flag} is {shown(repr(value))}; expected {expected}. {remedy}".rstrip())


def check_run_name(name: str, flag: str = "run_name") -> None:
    """Refuse a run name that is not one plain folder name.

    Raises:
        UserError: the name is empty, `.`, `..`, too long, or holds a slash or control character.
    """
    # What the locale could not read stands there as half pairs of surrogates.
    readable = not any("\ud800" <= c <= "\udfff" for c in name)
    letters = "a name in letters of the locale"
    check(readable, flag, name, letters, "Set PYTHONUTF8=1 or LANG=C.UTF-8.")
    plain = name.strip() == name and name not in ("", ".", "..")
    plain = plain and name.isprintable() and not any(c in name for c in "/\\")
    # A leading dash would read as a flag wherever the folder is named later.
    plain = plain and not name.startswith("-") and len(name.encode()) <= LONGEST_NAME
    expected = f"a name without leading dash, slash, control character, up to {LONGEST_NAME} bytes"
    check(plain, flag, name, expected, "Use --output_dir to move the folder that it is in.")


def check_positive(settings: object, *names: str, least: int = 1, most: int = MOST) -> None:
    """Refuse a whole number out of range in the named fields; None is an automatic choice.

    Raises:
        UserError: with the flag and the value given.
    """
    for name in names:
        value = getattr(settings, name)
        expected = f"a whole number of at least {least}"
        # The usual mistake is below the range.
        if value is not None and value > most:
            expected = f"{expected} and at most {most:,}"
        check(value is None or least <= value <= most, name, value, expected)


def check_paths(settings: object, *names: str) -> None:
    """Refuse names of files and folders that none can have; None names nothing.

    Raises:
        UserError: with the flag.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None:
            check(value.strip() != "", name, value, "a name")
            here = "a name here or on the hub (owner/name): addresses are not fetched"
            check(not re.match(r"\w+://", value), name, value, here)
            check_path(value, f"--{name}")

"""What a run is computed on: versions, machine, command and choices, a part for each start."""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tuninglab.console import Choices
from tuninglab.errors import UserError
from tuninglab.untrusted import MIB, read_json

# What the figures of a run or measurement depend on; not all of them need be there.
PACKAGES = (
    *("tuninglab", "torch", "transformers", "peft", "accelerate", "safetensors"),
    *("bitsandbytes", "pillow", "numpy"),
)
LARGEST = 64 * MIB


def this_start(choices: Choices, threads: int, device: str) -> dict[str, Any]:
    """The part of environment.json of this start: on what, and why choices were made."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "device": device,
        "threads": threads,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "git_commit": git_commit(),
        "command": sys.argv,
        "choices": choices.made,
    }


def read_starts(run: Path) -> list[dict[str, Any]]:
    """The parts of environment.json, one a start, oldest first; none if there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    path = run / "environment.json"
    if not path.exists():
        return []
    try:
        parts = read_json(path, LARGEST, "environment of the run")
    except UserError as error:
        raise UserError(f"{path} is not JSON: damaged. Restore or delete it. ({error})") from error
    # Version 0.1 wrote one object, of the last start.
    return [part for part in (parts if isinstance(parts, list) else [parts]) if type(part) is dict]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, `-dirty` if changed; None outside one."""
    package = Path(__file__).parent
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        # A package inside somebody's environment must not report that project's commit.
        for command in (["ls-files", "--error-unmatch", Path(__file__).name], describe):
            done = subprocess.run(
                ["git", "-C", str(package), *command], capture_output=True, text=True, timeout=10
            )
            if done.returncode:
                return None
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()

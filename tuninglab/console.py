"""What a command says while it works: notes to standard error, choices with their reason."""

import io
import os
import shlex
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

# What accelerate answered, once it was asked (training/hardware.py).
_answered: bool | None = None


def is_main_process() -> bool:
    """True on the one process that speaks and writes: accelerate's first, and any that is alone.

    Before accelerate is loaded, it is foreseen by accelerate's own rule: a process is one of
    several if LOCAL_RANK and WORLD_SIZE say so. Job templates set RANK alone, also for one process.
    """
    if _answered is not None:
        return _answered
    several = "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    return not several or os.environ.get("RANK", "0") == "0"


def answer_main_process(value: bool | None) -> None:
    """Keep what accelerate says of this process, for all who ask; None forgets it."""
    global _answered
    _answered = value


def say(text: str = "") -> None:
    """Print a note to standard error, from the main process; standard output is for results."""
    if is_main_process():
        print(text, file=sys.stderr, flush=True)


class _Unheard(io.TextIOWrapper):
    """Standard error that goes on where nobody can hear it: on a full disk, with a reader gone."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def open_streams() -> None:
    """Make standard streams that can be written to, whatever the process was started with.

    Notes that cannot be written stop no work; of results it is told (cli.py).
    """
    # Files that are opened later must not take the numbers of closed streams: what libraries say
    # there would end in the user's files.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    # Tests and notebooks bring streams of their own.
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = getattr(sys.stderr, "encoding", "utf-8")
        raw = open(2, "wb", closefd=False)
        sys.stderr = _Unheard(raw, encoding, "backslashreplace", line_buffering=True)
    # A terminal without Unicode shows the tree's guides as escapes instead of failing.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def program(name: str = "tuninglab", module: str = "tuninglab") -> str:
    """How the reader's shell starts a program of this environment, for commands to paste.

    Its bare name only if PATH finds this very one: `make demo` runs without an active environment,
    and another environment may have a program of that name.

    Args:
        name: of its script, which usually lies beside this Python.
        module: the same program as a module, for an environment that lacks the script.
    """
    # The running one first: `pip install --user` puts scripts elsewhere than Python.
    started, beside = Path(sys.argv[0]), Path(sys.executable).with_name(name)
    script = started if started.name == name and started.is_file() else beside
    if not script.is_file():
        return f"{_importing()}{_python()} -m {module}"
    found = shutil.which(name)
    # The same file: pipx and the like put a link to it on PATH.
    here = found is not None and os.path.samefile(found, script)
    return name if here else _shortest(script)


def _python() -> str:
    # Not the same file: the Pythons of all environments are links to one.
    found = shutil.which(Path(sys.executable).name)
    here = found is not None and os.path.abspath(found) == os.path.abspath(sys.executable)
    return Path(sys.executable).name if here else _shortest(Path(sys.executable))


def _importing() -> str:
    """A setting before the command, where this package is found only by how it was started."""
    root = Path(__file__).resolve().parents[1]
    places = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    found = root.name == "site-packages" or root in (Path(place).resolve() for place in places)
    return "" if found else f"PYTHONPATH={shlex.quote(str(root))} "


def _shortest(path: Path) -> str:
    """A path from the current directory or from the root, quoted; always with a slash in it."""
    relative = os.path.relpath(path)
    relative = relative if "/" in relative else f"./{relative}"
    return shlex.quote(min(relative, os.path.abspath(path), key=len))


@dataclass
class Choices:
    """Automatic choices of a run: each is said once, with its reason, and saved with the run.

    Args:
        made: so far.
        aloud: False: they are only kept, as those of a run that is weighed and not made.
    """

    made: list[dict[str, str]] = field(default_factory=list)
    aloud: bool = True

    def add(self, what: str, value: str, reason: str) -> str:
        """Record and say `what: value (reason)`; returns the value."""
        entry = {"choice": what, "value": value, "reason": reason}
        if entry not in self.made:
            self.made.append(entry)
            if self.aloud:
                say(f"{what}: {value} ({reason})")
        return value

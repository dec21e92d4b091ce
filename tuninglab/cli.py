"""The command line: a verb, its flags, exit codes 0 done, 1 failed in the work, 2 wrong input.

Every heavy import happens inside the verb that needs it, so that `--help` answers at once.
"""

import difflib
import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tuninglab.config.flags import parse, without_blanks
from tuninglab.console import is_main_process, say
from tuninglab.errors import UserError, WorkError

Config = TypeVar("Config")

INTERRUPTED = 130  # what shells report for Ctrl-C: 128 + SIGINT
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = without_blanks(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Unicode shows the tree's guides as escapes instead of failing.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        # The version stands in pyproject.toml too; a test keeps the two the same.
        from tuninglab import __version__

        print(f"tuninglab {__version__}")
        return 0
    # A guess is only offered, never run: `finetun` might have been meant as another verb.
    if words[0] not in VERBS:
        near = difflib.get_close_matches(words[0], VERBS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        say(f"Unknown verb {words[0]!r}.{hint} Verbs: {', '.join(VERBS)}; see tuninglab --help.")
        return UserError.exit_code
    return VERBS[words[0]](words[1:])


def finetune_main(argv: Sequence[str] | None = None) -> int:
    """Tune a Flamingo on your data or the embedded data."""
    from tuninglab.config import FinetuneConfig

    def work(config: FinetuneConfig) -> None:
        if config.compare:
            from tuninglab.comparison import compare_flamingo as run
        else:
            from tuninglab.recipes.flamingo import finetune as run

        _print_json(run(config), config.json)

    return _run_verb("finetune", FinetuneConfig, argv, work)


def flan_t5_main(argv: Sequence[str] | None = None) -> int:
    """Tune a T5 on text pairs, its base in int8; or compare int8 with 16 bits."""
    from tuninglab.config import FlanT5Config

    def work(config: FlanT5Config) -> None:
        from tuninglab.recipes.flan_t5 import flan_t5

        _print_json(flan_t5(config), config.json)

    return _run_verb("flan-t5", FlanT5Config, argv, work)


def demo_main(argv: Sequence[str] | None = None) -> int:
    """Tune the embedded Flamingo and show its answers before and after."""
    from tuninglab.config import DemoConfig

    def work(config: DemoConfig) -> None:
        from tuninglab.recipes.demo import run_demo

        _print_json(run_demo(config), config.json)

    return _run_verb("demo", DemoConfig, argv, work)


def tree_main(argv: Sequence[str] | None = None) -> int:
    """Print the module tree of a model."""
    from tuninglab.config import TreeConfig

    def work(config: TreeConfig) -> None:
        from tuninglab.inspection.show_tree import tree_of

        print(tree_of(config))

    return _run_verb("tree", TreeConfig, argv, work)


def convert_main(argv: Sequence[str] | None = None) -> int:
    """Turn a released checkpoint into a model, or back, or inspect one."""
    from tuninglab.config import ConvertConfig

    def work(config: ConvertConfig) -> None:
        from tuninglab.conversion.convert import convert
        from tuninglab.conversion.report import page

        report = convert(config)
        _print_json(report, config.json)
        if config.inspect and not config.json:
            print(page(report))

    return _run_verb("convert", ConvertConfig, argv, work)


def chat_main(argv: Sequence[str] | None = None) -> int:
    """Talk to a run or a model about pictures."""
    from tuninglab.config import ChatConfig

    def work(config: ChatConfig) -> None:
        from tuninglab.serving.terminal import chat

        chat(config)

    return _run_verb("chat", ChatConfig, argv, work)


def report_main(argv: Sequence[str] | None = None) -> int:
    """Write the HTML report of a run anew."""
    from tuninglab.config import ReportConfig

    def work(config: ReportConfig) -> None:
        from tuninglab.reporting.report import read_figures, write_report

        # Figures come after the page, so that a broken folder prints nothing on standard output.
        page = write_report(config.run)
        _print_json(read_figures(config.run), config.json)
        if not config.json:
            print(page)

    return _run_verb("report", ReportConfig, argv, work)


# The order is that of --help: first what a newcomer runs. Help text is each verb's docstring.
VERBS: dict[str, Callable[[Sequence[str] | None], int]] = {
    "demo": demo_main,
    "finetune": finetune_main,
    "flan-t5": flan_t5_main,
    "tree": tree_main,
    "convert": convert_main,
    "chat": chat_main,
    "report": report_main,
}


def run_command(function: Callable[[], None], debug: bool = False) -> int:
    """Run the work of a command and turn how it ends into an exit code and one message.

    Errors that nobody foresaw pass through with their traceback: they are ours to mend.
    """
    try:
        function()
        # A reader that has gone (`| head`) or a full disk shows here, not in Python's exit.
        sys.stdout.flush()
    except (UserError, WorkError) as error:
        _tell(str(error), debug)
        return error.exit_code
    except KeyboardInterrupt:
        _tell("Stopped by Ctrl-C.", debug)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; a second flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # Files of the user are opened where they are named, with messages of their own; an OSError
        # that comes this far is about the disk, or a mistake of ours.
        if error.errno not in DISK_FULL + FORBIDDEN:
            raise
        return _tell_os_error(error, debug)
    return 0


def _tell_os_error(error: OSError, debug: bool) -> int:
    where = error.filename or "the file being written"
    if error.errno in DISK_FULL:
        _tell(f"{where}: {error.strerror}. Free some space; what was saved before is whole.", debug)
        return WorkError.exit_code
    _tell(f"{where}: {error.strerror}. Change its permissions or choose another place.", debug)
    return UserError.exit_code


def _tell(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    # An error may strike one process of torchrun alone: it must not be the silent one.
    rank = "" if is_main_process() else f"[process {os.environ['RANK']}] "
    print(rank + message, file=sys.stderr, flush=True)


def _run_verb(
    verb: str,
    config_class: type[Config],
    argv: Sequence[str] | None,
    work: Callable[[Config], None],
) -> int:
    words = without_blanks(sys.argv[1:] if argv is None else argv)

    def parse_and_work() -> None:
        config = parse(f"tuninglab {verb}", config_class, words)
        if getattr(config, "print_config", False):
            from tuninglab.config.yaml_file import config_yaml

            print(config_yaml(config), end="")
        else:
            work(config)

    # Read by hand, because parsing itself may be what fails.
    debug = any(word in ("--debug", "--debug=true", "--debug=True") for word in words)
    try:
        return run_command(parse_and_work, debug)
    except SystemExit as stop:  # tyro has spoken: help (0) or a wrong flag (2)
        return stop.code if isinstance(stop.code, int) else UserError.exit_code


def _print_json(figures: Any, wanted: bool) -> None:
    # One document, not one for each process of torchrun.
    if wanted and is_main_process():
        print(json.dumps(figures, ensure_ascii=False, indent=2))


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {run.__doc__}" for verb, run in VERBS.items()]
    return "\n".join(
        [
            "usage: tuninglab VERB [FLAGS]",
            "",
            "Tune a Flamingo on pictures and dialogues, on this machine.",
            "",
            *lines,
            "",
            "tuninglab VERB --help lists the flags of a verb; --version prints the version.",
        ]
    )

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
from importlib import import_module
from typing import Any, NamedTuple

from tuninglab.config.flags import command_line, given, parse, without_blanks
from tuninglab.console import is_main_process, open_streams, program, say
from tuninglab.errors import UserError, WorkError
from tuninglab.progress import working
from tuninglab.threads import set_waiting

INTERRUPTED = 130  # what shells report for Ctrl-C: 128 + SIGINT
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = without_blanks(sys.argv[1:] if argv is None else argv)
    open_streams()
    if not words or words[0] in ("-h", "--help", "help"):
        return run_command(lambda: print(_usage()))
    if words[0] == "--version":
        # The version stands in pyproject.toml too; a test keeps the two the same.
        from tuninglab import __version__

        print(f"tuninglab {__version__}")
        return 0
    # A guess is only offered, never run: `finetun` might have been meant as another verb.
    if words[0] not in VERBS:
        near = difflib.get_close_matches(words[0], VERBS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        verbs = ", ".join(VERBS)
        say(f"Unknown verb {words[0]!r}.{hint} Verbs: {verbs}; see {program()} --help.")
        return UserError.exit_code
    # A verb may be one of two words.
    count = 2 if " ".join(words[:2]) in VERBS else 1
    return run_verb(" ".join(words[:count]), words[count:])


def _print_json(result: Any, as_json: bool) -> None:
    # One document, not one for each process of torchrun.
    if as_json and is_main_process():
        print(json.dumps(result, ensure_ascii=False, indent=2))


def _print_text(result: str, as_json: bool) -> None:
    print(result)


def _print_conversion(report: dict[str, Any], as_json: bool) -> None:
    _print_json(report, as_json)
    # An inspection wrote nothing: what it found is all there is to see.
    if "out" not in report and not as_json:
        from tuninglab.conversion.report import page

        print(page(report))


def _print_report(result: Any, as_json: bool) -> None:
    _print_json(result.figures, as_json)
    if result.text is not None and not as_json:
        from rich.console import Console

        Console().print(result.text)
    if result.page and not as_json:
        print(result.page)


def _print_findings(result: tuple[Any, str, UserError | None], as_json: bool) -> None:
    figures, text, error = result
    _print_json(figures, as_json)
    if not as_json and is_main_process():
        print(text)
    # Both are asked for: what was found, and what is wrong with it.
    if error is not None:
        sys.stdout.flush()
        raise error


def _print_evaluations(result: Any, as_json: bool) -> None:
    evaluations = result.figures
    _print_json(evaluations[0] if len(evaluations) == 1 else evaluations, as_json)
    if not as_json and is_main_process():
        from rich.console import Console

        from tuninglab.reporting.evaluation_text import several, table_of

        for figures in evaluations:
            Console().print(table_of(figures))
        if len(evaluations) > 1:
            Console().print(several(evaluations))


class Verb(NamedTuple):
    """A row of the table of verbs. What it names is imported when the verb is run, not before.

    Args:
        config: its settings, a class of tuninglab.config, whose docstring is its help.
        room: the module of its work, below tuninglab.
        work: the function there, from the settings to a result.
        show: prints the result on standard output, as JSON if that was asked for.
    """

    config: str
    room: str
    work: str
    show: Callable[[Any, bool], None] = _print_json

    def settings(self) -> Any:
        """The class of its settings."""
        return getattr(import_module("tuninglab.config"), self.config)

    def run(self, config: Any) -> None:
        """Do the work and print what came of it."""
        from tuninglab.data.reading.named_files import look_at_files

        # Before the room of the work, which loads torch.
        look_at_files(config)
        # OpenMP reads it once, as torch is loaded.
        set_waiting()
        with working("loading torch and what builds on it"):
            work = getattr(import_module(f"tuninglab.{self.room}"), self.work)
        self.show(work(config), getattr(config, "json", False))


# The order is that of --help: first what a newcomer runs.
VERBS = {
    "demo": Verb("DemoConfig", "recipes.demo", "run_demo"),
    "data": Verb("DataConfig", "reporting.data_audit", "look_at_data", _print_findings),
    "plan": Verb("PlanConfig", "recipes.plan", "plan", _print_findings),
    "plan flan-t5": Verb("PlanTextConfig", "recipes.plan", "plan_text", _print_findings),
    "finetune": Verb("FinetuneConfig", "recipes.flamingo", "finetune"),
    "flan-t5": Verb("FlanT5Config", "recipes.flan_t5", "flan_t5"),
    "evaluate": Verb("EvaluateConfig", "recipes.evaluate", "evaluate", _print_evaluations),
    "tree": Verb("TreeConfig", "inspection.show_tree", "tree_of", _print_text),
    "convert": Verb("ConvertConfig", "conversion.convert", "convert", _print_conversion),
    "chat": Verb("ChatConfig", "serving.terminal", "chat"),
    "serve": Verb("ServeConfig", "serving.serve", "serve"),
    "export": Verb("ExportConfig", "conversion.export", "export"),
    "report": Verb("ReportConfig", "reporting.report_command", "report", _print_report),
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
    where = error.filename or "the file being written, or standard output"
    if error.errno in DISK_FULL:
        _tell(f"{where}: {error.strerror}. Free some space; what was saved before is whole.", debug)
        return WorkError.exit_code
    _tell(f"{where}: {error.strerror}. Change its permissions or choose another place.", debug)
    return UserError.exit_code


def _tell(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    # An error may strike one process of torchrun alone: it must not be the silent one.
    rank = "" if is_main_process() else f"[process {os.environ.get('RANK')}] "
    print(rank + message, file=sys.stderr, flush=True)


def run_verb(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one verb on its flags (those of the process if None); returns the exit code."""
    open_streams()
    words = without_blanks(sys.argv[1:] if argv is None else argv)

    def parse_and_work() -> None:
        """Settings from the words, then the work of the verb, or the settings as YAML."""
        row = _row_for(name, words)
        verb = VERBS[row]
        config = parse(f"{program()} {row}", verb.settings(), words)
        if getattr(config, "print_config", False):
            from tuninglab.config.yaml_file import config_yaml

            print(config_yaml(config), end="")
        else:
            verb.run(config)

    # Read by hand, because parsing itself may be what fails.
    debug = any(word in ("--debug", "--debug=true", "--debug=True") for word in words)
    try:
        with command_line(words):
            return run_command(parse_and_work, debug)
    except SystemExit as stop:  # tyro has spoken: help (0) or a wrong flag (2)
        return stop.code if isinstance(stop.code, int) else UserError.exit_code


def _row_for(name: str, words: Sequence[str]) -> str:
    """The row of a verb: `plan --config FILE` plans by the recipe that the file is of.

    Raises:
        UserError: the file cannot be read.
    """
    rows = [row for row in VERBS if row.startswith(f"{name} ")]
    path = given(words, "config") if rows else None
    if path is None:
        return name
    from tuninglab.config.yaml_file import recipe_named

    row = f"{name} {recipe_named(path)}"
    return row if row in rows else name


def finetune_main(argv: Sequence[str] | None = None) -> int:
    """`flamingo.py` and `fine_tuning.py`: the verb finetune; returns the exit code."""
    return run_verb("finetune", argv)


def flan_t5_main(argv: Sequence[str] | None = None) -> int:
    """`flan_t5.py`: the verb flan-t5; returns the exit code."""
    return run_verb("flan-t5", argv)


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {row.settings().__doc__}" for verb, row in VERBS.items()]
    return "\n".join(
        [
            f"usage: {program()} VERB [FLAGS]",
            "",
            "Tune a Flamingo on pictures and dialogues, on this machine.",
            "",
            *lines,
            "",
            f"{program()} VERB --help lists the flags of a verb; --version prints the version.",
        ]
    )

"""The two ways a command can fail, as exceptions that carry their exit code."""


class UserError(Exception):
    """What the user gave, or the machine, does not allow it. The message says what to change."""

    exit_code = 2


class WorkError(Exception):
    """The work itself failed (disk full, loss not finite). The message says what was saved."""

    exit_code = 1


class DataError(UserError):
    """Records of a data file are wrong; all problems are kept, the first 20 are shown.

    Args:
        problems: one line each, naming file, record and remedy.
        hint: what to do about them, shown last.
    """

    SHOWN = 20

    def __init__(self, problems: list[str], hint: str = ""):
        self.problems = problems
        lines = problems[: self.SHOWN]
        if len(problems) > self.SHOWN:
            lines.append(f"... and {len(problems) - self.SHOWN} more")
        super().__init__("\n".join([*lines, hint] if hint else lines))

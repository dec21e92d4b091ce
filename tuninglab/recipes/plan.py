"""`tuninglab plan`: memory and time of a run before it starts, and what makes it fit."""

from typing import Any

from tuninglab.config import PlanConfig
from tuninglab.errors import UserError


def plan(config: PlanConfig) -> tuple[dict[str, Any], str, UserError | None]:
    """Plan a run.

    Returns:
        What `--json` prints, the text for people, and that it does not fit.

    Raises:
        UserError: the settings or the data do not allow the run.
    """
    raise NotImplementedError

"""What the two demonstrations on embedded data have in common: whose run it is."""

from pathlib import Path

from tuninglab.config import TrainingConfig
from tuninglab.config.yaml_file import read_recipe
from tuninglab.errors import UserError


def check_own(run: Path, settings: type[TrainingConfig]) -> None:
    """Pass if there is no such run, or an earlier demonstration, which a new one replaces.

    Raises:
        UserError: it is a run of somebody's own data or model.
    """
    if (run / "config.yaml").is_file():
        earlier = read_recipe(run / "config.yaml")
        if not isinstance(earlier, settings) or not earlier.is_demo:
            raise UserError(
                f"{run} is no demo but a run of your own. Give a --run_name that is free."
            )

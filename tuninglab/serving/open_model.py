"""A model ready to answer, from what the user named: a run folder, a directory or a hub id."""

from pathlib import Path
from typing import Any

from tuninglab.adapters.saving import load_adapter
from tuninglab.config import FinetuneConfig
from tuninglab.config_file import read_config
from tuninglab.embedded import base_directory
from tuninglab.errors import UserError
from tuninglab.models.build import load_flamingo
from tuninglab.run_folder import how_to_end


def open_model(name: str) -> tuple[Any, Any]:
    """Load a model in evaluation mode, and its processor.

    Args:
        name: a run folder (its base with its adapter), a model directory, a hub id, or `embedded`.

    Raises:
        UserError: there is no such model, the run has not ended, or its base is gone.
    """
    run = Path(name).expanduser()
    # What tells them apart: a run folder holds config.yaml, a model directory config.json.
    if not (run / "config.yaml").is_file():
        return load_flamingo(base_directory() if name == "embedded" else name)
    if not (run / "adapter").is_dir():
        raise UserError(f"{run} has no adapter/: the run has not ended. {how_to_end(run)}")
    try:
        model, processor = load_flamingo(_base_of(run))
    except UserError as error:
        # The user named the run, not its base: say how the two belong together.
        raise UserError(f"The base of run {run}: {error}") from error
    return load_adapter(model, run / "adapter").eval(), processor


def _base_of(run: Path) -> str | Path:
    # A run that started from a plain language model and a tower keeps the Flamingo they made.
    if (run / "base").is_dir():
        return run / "base"
    base = read_config(run / "config.yaml", FinetuneConfig).model
    return base_directory() if base == "embedded" else base

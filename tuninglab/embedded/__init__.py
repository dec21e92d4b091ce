"""What ships with the package: a small pre-trained Flamingo and T5, and the demos' tasks."""

from pathlib import Path

from tuninglab.run_folder.named_model import EMBEDDED


def base_directory() -> Path:
    """The shipped base, a model directory like any other.

    `python -m tools.embedded_base` rebuilds it.
    """
    return EMBEDDED


def text_base_directory() -> Path:
    """The shipped T5, a model directory like any other.

    `python -m tools.embedded_text_base` rebuilds it.
    """
    return Path(__file__).parent / "text_base"

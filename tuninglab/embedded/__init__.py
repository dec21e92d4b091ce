"""The default that ships with the package: a small pre-trained Flamingo, and the demo's task."""

from pathlib import Path


def base_directory() -> Path:
    """The shipped base, a model directory like any other.

    `python -m tools.embedded_base` rebuilds it.
    """
    return Path(__file__).parent / "base"

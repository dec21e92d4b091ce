"""The verb `export`: a run to carry away, checked, with a model card."""

from typing import Any

from tuninglab.config import ExportConfig


def export(config: ExportConfig) -> dict[str, Any]:
    """Export as the settings say; returns what was written and checked."""
    raise NotImplementedError

"""Which of the bases that were shipped so far an adapter belongs to: all are called `embedded`.

They have the same shapes, so that an adapter of another one would load without a word.
"""

import functools
import hashlib
import json
from pathlib import Path

from tuninglab.errors import UserError
from tuninglab.named_model import EMBEDDED

# Beside PEFT's own files, because its configuration keeps no settings that it does not know.
SETTINGS_NAME = "tuninglab.json"
MARK = "embedded_base"


@functools.cache
def shipped_mark() -> str:
    """The beginning of the sha256 of the weights that ship with the package."""
    return hashlib.sha256((EMBEDDED / "model.safetensors").read_bytes()).hexdigest()[:12]


def check_shipped_base(adapter: Path) -> None:
    """Pass if an adapter on `embedded` was tuned on the base that is shipped now, or does not say.

    Args:
        adapter: its folder; PEFT's own `save_pretrained` writes no file that would say it.

    Raises:
        UserError: it was tuned on an earlier one.
    """
    try:
        base = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
        said = json.loads((adapter / SETTINGS_NAME).read_text("utf-8"))
        ours = base["base_model_name_or_path"] == "embedded" and "media_mode" in said
    except (OSError, ValueError, KeyError, TypeError):
        # Damaged files are told by whoever reads them.
        return
    if ours and said.get(MARK) != shipped_mark():
        raise UserError(
            f"{adapter} was tuned on the embedded base of another version of tuninglab, whose "
            "weights are others. Tune again (a new --run_name), or use the version that made it."
        )

"""Which of the bases that were shipped so far an adapter belongs to: all are called `embedded`.

They have the same shapes, so that an adapter of another one would load without a word.
"""

import functools
import hashlib
from pathlib import Path

from tuninglab.errors import UserError
from tuninglab.run_folder.named_model import ADAPTER_CONFIG, EMBEDDED, LARGEST_CONFIG
from tuninglab.untrusted import read_json

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
        base, said = (
            read_json(adapter / name, LARGEST_CONFIG, "adapter")
            for name in (ADAPTER_CONFIG, SETTINGS_NAME)
        )
        ours = base["base_model_name_or_path"] == "embedded" and "media_mode" in said
        mark = said.get(MARK)
    except (UserError, AttributeError, KeyError, TypeError):
        # Damaged files are told by whoever reads them.
        return
    if ours and mark != shipped_mark():
        raise UserError(
            f"{adapter} was tuned on the embedded base of another version of tuninglab, whose "
            "weights are others. Tune again (a new --run_name), or use the version that made it."
        )

"""What an adapter was tuned with and PEFT's own files have no place for: tuninglab.json."""

from pathlib import Path
from typing import Any

from tuninglab.adapters.shipped_base import SETTINGS_NAME
from tuninglab.config.prompts import PROMPTS, TUNINGLAB, is_template
from tuninglab.errors import UserError
from tuninglab.models.formats.layout import MEDIA_MODES
from tuninglab.run_folder.named_model import LARGEST_CONFIG
from tuninglab.untrusted import read_json, shown


def adapter_prompt(directory: Path) -> str:
    """The prompt that an adapter was tuned with: a name, or the text of a Jinja template.

    Raises:
        UserError: the file that says it is damaged.
    """
    prompt = (_settings(directory) or {}).get("prompt", TUNINGLAB)
    if not isinstance(prompt, str) or prompt not in PROMPTS and not is_template(prompt):
        raise UserError(
            f"{directory / SETTINGS_NAME}: prompt is {shown(repr(prompt))}; expected one of "
            f"{', '.join(PROMPTS)}, or a Jinja template"
        )
    return prompt


def tuned_media_mode(directory: Path) -> str | None:
    """The media mode that an adapter was tuned in; None for one that kept none.

    Raises:
        UserError: the file that says it is damaged.
    """
    said = _settings(directory)
    if said is None:
        return None
    mode = said["media_mode"]
    if mode not in MEDIA_MODES:
        raise UserError(
            f"{directory / SETTINGS_NAME}: media_mode is {shown(repr(mode))}; expected one of "
            f"{', '.join(MEDIA_MODES)}"
        )
    return mode


def _settings(directory: Path) -> dict[str, Any] | None:
    file = directory / SETTINGS_NAME
    # PEFT's own save_pretrained, and tuninglab before it converted checkpoints, wrote no such file.
    if not file.is_file():
        return None
    said = read_json(file, LARGEST_CONFIG, "adapter")
    if not isinstance(said, dict) or "media_mode" not in said:
        raise UserError(
            f'{file} is damaged: expected {{"media_mode": ...}}. Copy the adapter again'
        )
    return said

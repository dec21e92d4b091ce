"""A look at the files that flags name, before torch is loaded: a typing error is told at once.

What is in them is checked by whoever reads them.
"""

import os
from pathlib import Path
from typing import Any

from tuninglab.config import (
    ChatConfig,
    DataConfig,
    PlanConfig,
    PlanTextConfig,
    TrainingConfig,
)
from tuninglab.config.data import parts_of
from tuninglab.config.yaml_file import file_named
from tuninglab.data.images import load_image
from tuninglab.data.reading.opening import check_files, checked_root
from tuninglab.errors import UserError
from tuninglab.run_folder.named_model import find_model, local_directory


def look_at_files(config: Any) -> None:
    """Pass if the files and folders that the settings of a verb name are there and can be read.

    Raises:
        UserError: as whoever reads them would say it, four seconds of imports later.
    """
    if isinstance(config, TrainingConfig):
        with file_named(config):
            _look_at_data(config)
            _look_at_bases(config)
    elif isinstance(config, DataConfig):
        _look_at_data(config)
        _look_at_model(config.model)
        folder = os.path.dirname(config.html or "") or "."
        if not os.path.isdir(folder):
            raise UserError(f"--html: there is no folder {folder}. Make it, or name another place.")
    elif isinstance(config, ChatConfig):
        _look_at_model(config.model)
        if config.image is not None:
            picture = os.path.expanduser(config.image)
            if not os.path.exists(picture):
                raise UserError(f"There is no picture {picture}. Check the path.")
            load_image(picture)


def _look_at_model(name: str) -> None:
    named = find_model(name)
    if named.adapter is None and named.base != "embedded":
        local_directory(named.base, "model")


def _look_at_data(config: DataConfig | TrainingConfig) -> None:
    roots = [getattr(config, "image_root", None)]
    for part in [*(parts_of(config.data) or []), *(parts_of(config.val_data) or [])]:
        check_files(part)
        roots.append(part.image_root)
    for root in filter(None, roots):
        checked_root(Path(root))


def _look_at_bases(config: TrainingConfig) -> None:
    # A plan may be of a preset, whose names are told where torch is loaded.
    if config.model != "embedded" and not isinstance(config, PlanConfig | PlanTextConfig):
        local_directory(config.model, "model")
    if (lang := getattr(config, "lang_encoder", None)) is not None:
        local_directory(lang, "language model")
    vision = getattr(config, "vision_encoder", None)
    # An OpenCLIP tower may be a file.
    if vision is not None and not os.path.isfile(vision):
        local_directory(vision, "vision tower")

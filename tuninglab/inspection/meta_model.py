"""A model without weights, from what the user named: a preset, a directory, a run, an adapter."""

import difflib
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from tuninglab.adapters.lora import quietly
from tuninglab.adapters.saving import adapter_file
from tuninglab.adapters.stored_config import check_fits, read_adapter_config
from tuninglab.console import say
from tuninglab.errors import UserError
from tuninglab.inspection.presets import PRESET_NAMES, PRESETS, build_preset, model_on_meta
from tuninglab.models.folder_files import LARGEST_SETTINGS
from tuninglab.models.hub import resolve
from tuninglab.models.parts import explained, read_config
from tuninglab.run_folder.named_model import HUB_ID, find_model
from tuninglab.untrusted import read_json


def meta_model(name: str) -> Any:
    """Modules, shapes and number formats of a model, on the meta device; no weights are read.

    Args:
        name: a preset, a model directory, a run folder or an adapter directory (both with their
            LoRA; trainable is what the adapter holds), or a hub id, whose configuration is read.

    Raises:
        UserError: there is no such model, or its files are damaged.
    """
    if name in PRESET_NAMES:
        if Path(name).is_dir():
            say(f"{name} is the preset; for the directory of this name write ./{name}")
        return build_preset(name)
    named = find_model(name)
    if named.adapter is None:
        return _from_config(name)
    try:
        base = build_preset("embedded") if named.base == "embedded" else _from_config(named.base)
    except UserError as error:
        # The user named the result of tuning, not its base: say how the two belong together.
        raise UserError(f"The base of {named.tuned}: {error}") from error
    return _with_adapter(base, named.adapter)


def named_config(name: str) -> PreTrainedConfig:
    """The configuration of a base that the user named.

    Args:
        name: a preset, a model directory or a hub id.

    Raises:
        UserError: there is no such model, or its files are damaged.
    """
    # What trains is loaded from a directory of such a name, where there is one.
    if name in PRESETS and not Path(name).is_dir():
        return AutoConfig.for_model(**PRESETS[name])
    return _read_config(name)[0]


def _read_config(name: str) -> tuple[PreTrainedConfig, str]:
    """The configuration of a directory or hub id, and where it was found."""
    path = Path(name).expanduser()
    if not path.exists() and not HUB_ID.fullmatch(name):
        raise UserError(f"model: there is no preset and no directory {name!r}. {_near(name)}")
    try:
        where, local = resolve(name, "model")
    except UserError as error:
        raise UserError(f"{error}. {_near(name)}") from error
    _refuse_foreign_code(path)
    return read_config(where, local, "model"), where


def _from_config(name: str) -> PreTrainedModel:
    config, where = _read_config(name)
    if getattr(config, "quantization_config", None):
        say(f"{name}: shown as before its quantisation, which happens while weights are read")
    with explained("model", where):
        return model_on_meta(config)


def _near(name: str) -> str:
    """The names most like this one: presets, and directories beside the one that is not there."""
    parent = Path(name).expanduser().parent
    beside = [parent / entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    known = {str(path).lower(): str(path) for path in beside if path.is_dir()}
    known |= {preset: preset for preset in PRESET_NAMES}
    near = difflib.get_close_matches(name.lower(), known, n=2)
    if near:
        return f"Did you mean {' or '.join(known[one] for one in near)}?"
    return f"Presets: {', '.join(PRESET_NAMES)}."


def _refuse_foreign_code(folder: Path) -> None:
    """Stop where only code that lies beside the weights knows the model: it is never run here."""
    # Not there: the loader says so.
    file = folder / "config.json"
    config = read_json(file, LARGEST_SETTINGS, "model") if file.is_file() else {}
    kind = config.get("model_type")
    if "auto_map" in config and kind not in CONFIG_MAPPING:
        raise UserError(
            f"model: {folder} is a {kind!r}, which transformers does not know without the code "
            "that lies beside its weights; that is not run to show a tree. Presets show released "
            f"models ({', '.join(PRESET_NAMES)}); tuninglab convert takes --trust_remote_code"
        )


def _with_adapter(model: PreTrainedModel, directory: Path) -> Any:
    """A model on the meta device under a saved adapter; of the adapter's weights only the names."""
    with adapter_file(directory) as file, torch.device("meta"):
        lora = read_adapter_config(directory)
        rows: Any = model.get_input_embeddings().num_embeddings
        check_fits(lora, file, rows, directory)
        lora.inference_mode = False
        # PEFT would warn that the base is called otherwise here.
        lora.base_model_name_or_path = None
        stored, tuned = set(file.keys()), quietly(get_peft_model, model, lora)
    # Gates and whole modules that were trained stand in the same file: see adapters/saving.py.
    for name, parameter in tuned.named_parameters():
        parameter.requires_grad = name.replace(".default", "") in stored
    return tuned

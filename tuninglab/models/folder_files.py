"""The files of a model folder, looked at before any library reads them: kind, size and values."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuninglab.errors import UserError
from tuninglab.models.bounds import problem
from tuninglab.untrusted import MIB, check_path, read_json, shown

# What transformers reads of its own accord, from Python. An index names every weight of a model.
SETTINGS = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json"),
    *("preprocessor_config.json", "special_tokens_map.json", "added_tokens.json"),
)
LARGEST_SETTINGS = 16 * MIB
# Gemma 3's has 33 MB.
LARGEST_OTHER = 256 * MIB
# 2,000 weights take 200 KB.
LARGEST_INDEX = 64 * MIB
INDEX = ".index.json"
READ_WHOLE = (".json", ".txt", ".jinja", ".model")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
# Numbers a byte that weights can hold, with room: 4 bits are two.
DENSEST = 8


def check_folder(folder: Path, what: str) -> None:
    """Pass if the files of a model folder can be read, and its numbers are such as models have.

    Args:
        folder: a directory; what it lacks is told by whoever misses it.
        what: it is, for messages.

    Raises:
        UserError: a file is a pipe or a device, too large, no JSON, or holds a value out of range;
            the message names the file.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{what}: {folder} cannot be read: {error.strerror}") from error
    for entry in entries:
        _check_kind(entry, what)
        if entry.name.endswith(INDEX):
            _check_shards(Path(entry.path), what)
    rows, found = None, {entry.name for entry in entries}
    for name in (name for name in SETTINGS if name in found):
        content = read_json(folder / name, LARGEST_SETTINGS, what)
        if not isinstance(content, Mapping):
            raise UserError(f"{what}: {folder / name} holds no mapping; copy or download it again")
        # config.json comes first: of the others, the ids are of its table.
        if name == "config.json":
            rows = _rows(content)
        if wrong := problem(content, rows):
            raise UserError(f"{what}: {folder / name}: {wrong}")


def check_claims(folder: Path, what: str) -> None:
    """Pass if the weight files of a folder can hold the model that its config.json describes.

    Libraries build what is described first, in memory, and then find that the files hold less.

    Raises:
        UserError: they cannot.
    """
    held = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHTS)
    claimed = _least_numbers(read_json(folder / "config.json", LARGEST_SETTINGS, what))
    if held and claimed > DENSEST * held + MIB:
        raise UserError(
            f"{what}: {folder / 'config.json'} describes a model of at least {claimed:,} numbers, "
            f"but the weight files beside it have {held:,} bytes. They are not of the same save"
        )


def _check_kind(entry: os.DirEntry, what: str) -> None:
    if not entry.name.endswith((*READ_WHOLE, *WEIGHTS)):
        return
    try:
        found = entry.stat()
    except OSError as error:
        raise UserError(f"{what}: {entry.path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        if stat.S_ISDIR(found.st_mode):
            return
        raise UserError(f"{what}: {shown(entry.path)} is no regular file but a pipe or a device")
    if entry.name.endswith(READ_WHOLE) and found.st_size > LARGEST_OTHER:
        size = f"{found.st_size / MIB:,.0f} MiB"
        raise UserError(
            f"{what}: {entry.path} has {size}; no model's file of this kind is so large"
        )


def _check_shards(index: Path, what: str) -> None:
    """Libraries join what an index names to its folder, wherever that leads."""
    content = read_json(index, LARGEST_INDEX, what)
    table = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(table, Mapping):
        raise UserError(f"{what}: {index} has no weight_map; copy or download it again")
    for name in table.values():
        # Links are followed: in the hub's cache every file is one.
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
            raise UserError(
                f"{what}: {index} names the shard {shown(name)}, which is not beside it. Nothing "
                "else is read. Download or copy the model again"
            )
        check_path(name, f"{what}: {index}")


def _rows(config: Mapping[str, Any]) -> Any:
    """Rows of the token table, where config.json says it."""
    text = config.get("text_config")
    return config.get("vocab_size", text.get("vocab_size") if isinstance(text, Mapping) else None)


def _least_numbers(config: Any) -> int:
    """Fewer parameters than any model of this configuration, or one in it, has."""
    if not isinstance(config, Mapping):
        return 0

    def number(*names: str) -> int:
        values = (config.get(name) for name in names)
        return next((value for value in values if isinstance(value, int)), 0)

    width = number("hidden_size", "d_model", "n_embd")
    layers = number("num_hidden_layers", "num_layers", "n_layer", "n_layers")
    # The table; and of attention half a matrix a layer: heads may be few or narrow.
    own = width * (number("vocab_size") + layers * width // 2)
    return max([own, *(_least_numbers(value) for value in config.values())])

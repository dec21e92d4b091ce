"""A mark of a base's weights, by which an adapter that was carried away knows its base again.

Another base of the same shapes would take the adapter without a word, and answer wrongly.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor

from tuninglab.adapters.shipped_base import SETTINGS_NAME
from tuninglab.errors import UserError
from tuninglab.run_folder.named_model import HUB_ID, LARGEST_CONFIG, shipped
from tuninglab.untrusted import read_json

MARK_KEY = "base_weights"


def weights_folder(name: str | Path) -> Path | None:
    """Where the weights of a base lie on this machine; None: nowhere, or not as safetensors."""
    folder = Path(shipped(name)).expanduser()
    if not folder.is_dir() and HUB_ID.fullmatch(str(name)):
        known = try_to_load_from_cache(str(name), "config.json")
        folder = Path(known).parent if isinstance(known, str) else folder
    return folder if any(folder.glob("*.safetensors")) else None


def mark_of(folder: Path) -> str:
    """The beginning of a sha256 over all tensors of a model, of each its name, shape and a sample.

    Read are the first, middle and last row of each, so that a base of 18 GB takes seconds at most;
    training moves all rows of what it trains. How the tensors spread over files does not count.

    Args:
        folder: with the safetensors files of the model.
    """
    seen: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                seen[name] = _sample(file.get_slice(name))
    total = hashlib.sha256()
    for name in sorted(seen):
        total.update(name.encode() + b"\0" + seen[name])
    return total.hexdigest()[:24]


def check_base(adapter: Path, base: str | None) -> None:
    """Pass if a base is the one that an exported adapter belongs to, or neither can be told.

    Args:
        adapter: its folder; only `export` writes the mark into it.
        base: where the weights of the base were read from.

    Raises:
        UserError: the base has other weights.
    """
    file = adapter / SETTINGS_NAME
    if not base or not file.is_file():
        return
    said = read_json(file, LARGEST_CONFIG, "adapter")
    mark = said.get(MARK_KEY) if isinstance(said, dict) else None
    folder = weights_folder(base) if mark else None
    if folder is not None and mark_of(folder) != mark:
        raise UserError(
            f"{adapter} was tuned on a base with other weights than {base} has. Name the base that "
            f"it was tuned on (base_model_name_or_path in its adapter_config.json); or, where the "
            f"difference is meant, such as a base saved in fewer bits, delete {MARK_KEY} in {file}"
        )


def _sample(tensor: Any) -> bytes:
    shape = tensor.get_shape()
    head = f"{tensor.get_dtype()} {shape} ".encode()
    if not shape or not shape[0]:
        return head + (_bytes(tensor[...]) if not shape else b"")
    # A list of numbers (biases, norms) is read whole; of it, one row would be one number.
    rows = sorted({0, shape[0] // 2, shape[0] - 1})
    parts = [tensor[:]] if len(shape) == 1 else [tensor[row : row + 1] for row in rows]
    return head + b"".join(map(_bytes, parts))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()

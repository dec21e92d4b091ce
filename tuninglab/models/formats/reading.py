"""Checkpoint files of others, read without running anything that they hold."""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from tuninglab.errors import UserError
from tuninglab.models.formats.layout import Checkpoint
from tuninglab.models.formats.restricted import HARMLESS, ForbiddenName, RestrictedPickle, plain

# Training files of OpenFlamingo 2.0.1 (train_utils.py), of Lightning and of many others.
STATE_NAMES = ("model_state_dict", "state_dict")
INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# In this order: safetensors beside .bin files hold the same weights.
SHARD_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.bin", "*.pt", "*.pth")
SHARD = re.compile(r"-\d+-of-(\d+)\.\w+$")
LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file (its format description)
AGAIN = "Download or copy it again and compare its size with the source"


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a checkpoint, memory-mapped, and what else it holds that is plain data.

    Args:
        path: a torch.save file, a safetensors file, or a directory of such files (shards).

    Raises:
        UserError: there is no such file, it is no checkpoint, it is damaged, or it is a pickle that
            asks for code to run (which is then not run).
    """
    where = Path(path).expanduser()
    if not where.exists():
        raise UserError(f"There is no {where}; give the checkpoint file, or the directory of one")
    read = Checkpoint(str(path), {})
    content: dict[str, Any] = {}
    for file in _files(where) if where.is_dir() else [where]:
        part = _read_file(file)
        content.update(part)
        metadata = plain(getattr(_state_of(part), "_metadata", None))
        if metadata:
            read.extras["_metadata"] = metadata
    if where.is_dir() and (where / "config.json").is_file():
        read.extras["config"] = read_object(where / "config.json")
    read.tensors = _sorted_out(content, read)
    if not read.tensors:
        held = ", ".join(sorted(map(str, content))[:6]) or "nothing"
        raise UserError(
            f"{where} holds no tensors but {held}. Give the checkpoint that training saved "
            "(e.g. checkpoint.pt), which holds names of weights and their values"
        )
    return read


def _sorted_out(content: Mapping[str, Any], read: Checkpoint) -> dict[str, Tensor]:
    """The tensors by name without `module.`; all else that is plain goes to the extras."""
    state = _state_of(content)
    for name, value in content.items():
        if name in STATE_NAMES or isinstance(value, Tensor):
            continue
        kept = _plain_or_note(name, value, read.notes)
        if kept is not None:
            read.extras[name] = kept
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    # DistributedDataParallel's prefix, once for each wrapping.
    return {re.sub(r"\bmodule\.", "", name): tensor for name, tensor in tensors.items()}


def _state_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    held = (content[name] for name in STATE_NAMES if isinstance(content.get(name), Mapping))
    return next(held, content)


def _plain_or_note(name: str, value: Any, notes: list[str]) -> Any:
    # Moments of the optimizer: as large as the weights, and of no use here.
    if name.startswith(("optimizer", "lr_scheduler", "scaler")):
        return None
    kept = plain(value)
    if kept is None and value is not None:
        notes.append(f"{name}: skipped, it is a {type(value).__name__} that holds no plain values")
    elif type(value).__name__.endswith("StandIn") and isinstance(kept, dict):
        notes.append(
            f"{name}: a foreign configuration object, recovered as {len(kept)} plain values; none "
            "of its code was run"
        )
    return kept


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        UserError: it holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object. {AGAIN}")
    return content


def _files(folder: Path) -> list[Path]:
    """The weight files of a directory, by its index where there is one."""
    for name in INDEX_NAMES:
        if (folder / name).is_file():
            table = read_object(folder / name).get("weight_map")
            if not isinstance(table, dict) or not table:
                raise UserError(f"{folder / name} has no weight_map. {AGAIN}")
            files = [folder / shard for shard in sorted(set(map(str, table.values())))]
            gone = [file.name for file in files if not file.is_file()]
            if gone:
                raise UserError(
                    f"{folder}: {', '.join(gone)} of {len(files)} shards is missing; {name} names "
                    "it. Download the whole directory"
                )
            return files
    for pattern in SHARD_PATTERNS:
        found = sorted(folder.glob(pattern))
        wanted = {int(match[1]) for file in found if (match := SHARD.search(file.name))}
        if found and len(found) == max(wanted, default=1):
            return found
        if found:
            # Epochs of a training, or shards that are not all here: never joined by guess.
            names = ", ".join(file.name for file in found[:4])
            raise UserError(
                f"{folder} holds {len(found)} files of weights ({names}) that are not one "
                "checkpoint. Name the file, or download what is missing"
            )
    listed = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{folder} holds no weights (*.safetensors, *.bin, *.pt), but {listed}. Give the "
        "checkpoint file itself, or the directory it was downloaded to"
    )


def _read_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            head = opened.read(64)
        size = file.stat().st_size
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}. Give a readable checkpoint file") from error
    try:
        content = _load(file, head)
    except UserError:
        raise
    # Cut off and scrambled files were seen to raise a dozen classes from torch, pickle and others.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{file} ({size:,} bytes) is cut off or damaged, or no checkpoint: {reason}. {AGAIN}"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"{file} holds a {type(content).__name__}, not a dictionary of tensors. Save the "
            "model's state_dict() and give that file"
        )
    return content if isinstance(content, dict) else dict(content)


def _load(file: Path, head: bytes) -> Any:
    """The content of a file, by its first bytes: names of files say too little."""
    # Before pickles: the length of a safetensors header may begin with their first byte.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER:
        return load_file(file)
    is_zip = head.startswith(b"PK\x03\x04")
    if not is_zip and not head.startswith(b"\x80"):
        raise UserError(f"{file} {_what_it_is(head)}")
    options: dict[str, Any] = {"map_location": "cpu", "mmap": is_zip}
    try:
        return torch.load(file, weights_only=True, **options)
    except pickle.UnpicklingError:
        # Only now, and only by names: torch's own reader has refused, and said too little.
        _refuse(file, [name for name in _foreign_names(file) if name not in HARMLESS])
    try:
        return torch.load(file, weights_only=False, pickle_module=RestrictedPickle, **options)
    except ForbiddenName as name:
        _refuse(file, [str(name)])


def _foreign_names(file: Path) -> list[str]:
    try:
        return sorted(get_unsafe_globals_in_checkpoint(file))
    # torch's older format, or instructions its scanner does not know: the restricted reader, which
    # refuses at the first unknown name, decides alone.
    except Exception:
        return []


def _refuse(file: Path, names: list[str]) -> None:
    if names:
        raise UserError(
            f"{file} is a pickle that asks for {', '.join(names)}, which is neither a tensor nor a "
            "known configuration class. Nothing of it was executed. Do not load this file with "
            "other tools; get the weights from a source you trust, best as safetensors"
        )


def _what_it_is(head: bytes) -> str:
    start = head.lstrip().lower()
    if not head:
        return f"is empty. {AGAIN}"
    if start.startswith(b"version https://git-lfs"):
        return (
            "is a git-lfs pointer, not the weights themselves. Run `git lfs pull` in its "
            "repository, or download the file with `hf download`"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "is a web page, not a checkpoint: the download got an error or login page. Download "
            "the file itself (on the hub: the link with /resolve/ in it, or `hf download`)"
        )
    kind = "a text file" if _is_text(head) else "no checkpoint"
    return (
        f"is {kind} (it begins with {head[:16]!r}). Give a file that torch.save or safetensors "
        "wrote, such as checkpoint.pt"
    )


def _is_text(head: bytes) -> bool:
    # A character may be cut at the end of what was read.
    return head.decode("utf-8", errors="ignore").replace("\n", " ").replace("\t", " ").isprintable()

"""Checkpoint files of others, read without running anything that they hold."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tuninglab.errors import UserError
from tuninglab.models.formats.layout import Checkpoint
from tuninglab.models.formats.plain import TooMuch, plain
from tuninglab.models.formats.records import Dictionary, ForbiddenName, Foreign, TensorRecord
from tuninglab.models.formats.torch_file import AGAIN, TorchFile
from tuninglab.untrusted import check_path, open_regular, read_json, shown

# Training files of OpenFlamingo 2.0.1 (train_utils.py), of Lightning and of many others.
STATE_NAMES = ("model_state_dict", "state_dict")
INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# In this order: safetensors beside .bin files hold the same weights.
SHARD_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.bin", "*.pt", "*.pth")
SHARD = re.compile(r"-\d+-of-(\d+)\.\w+$")
LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file (its format description)
LONGEST_JSON = 100_000_000  # bytes, of an index or a configuration: as of that header
LONGEST_NAME = 500  # letters; those of released checkpoints have up to 90


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a checkpoint, memory-mapped, and what else it holds that is plain data.

    Args:
        path: a torch.save file, a safetensors file, or a directory of such files (shards).

    Raises:
        UserError: there is no such file, it is no checkpoint, it is damaged, or it is a pickle that
            asks for code to run (which is then not run).
    """
    where = Path(path).expanduser()
    check_path(where, "checkpoint")
    if not where.exists():
        raise UserError(f"There is no {where}; give the checkpoint file, or the directory of one")
    read = Checkpoint(str(path), {})
    content: dict[str, Any] = {}
    for file in _files(where) if where.is_dir() else [where]:
        part = read_weights(file)
        content.update(part)
        state = _state_of(part)
        if isinstance(state, Dictionary) and "_metadata" in state.attributes:
            metadata = _plain_or_note("_metadata", state.attributes["_metadata"], read.notes)
            read.extras |= {"_metadata": metadata} if metadata else {}
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


def _sorted_out(content: Mapping[Any, Any], read: Checkpoint) -> dict[str, Tensor]:
    """The tensors by name without `module.`; all else that is plain goes to the extras."""
    for key, value in content.items():
        name = _name(key, read)
        if name in STATE_NAMES or isinstance(value, (Tensor, TensorRecord)):
            continue
        kept = _plain_or_note(name, value, read.notes)
        if kept is not None:
            read.extras[name] = kept
    state = _state_of(content).items()
    tensors = {_name(key, read): value for key, value in state if isinstance(value, Tensor)}
    # DistributedDataParallel's prefix, once for each wrapping.
    return {re.sub(r"\bmodule\.", "", name): tensor for name, tensor in tensors.items()}


def _name(key: Any, read: Checkpoint) -> str:
    name = str(key)
    if not name.isprintable() or len(name) > LONGEST_NAME:
        raise UserError(
            f"{read.path} names something {shown(name)}, as no weight is named. {AGAIN}"
        )
    return name


def _state_of(content: Mapping[Any, Any]) -> Any:
    held = (content[name] for name in STATE_NAMES if isinstance(content.get(name), Mapping))
    return next(held, content)


def _plain_or_note(name: str, value: Any, notes: list[str]) -> Any:
    # Moments of the optimizer: as large as the weights, and of no use here.
    if name.startswith(("optimizer", "lr_scheduler", "scaler")):
        return None
    try:
        kept = plain(value)
    except TooMuch:
        notes.append(f"{name}: skipped, it holds more, or deeper, than any configuration")
        return None
    if kept is None and value is not None:
        kind = value.name if isinstance(value, Foreign) else type(value).__name__
        notes.append(f"{name}: skipped, it is a {shown(kind)} that holds no plain values")
    elif isinstance(value, (Foreign, Dictionary)) and isinstance(kept, dict):
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
    content = read_json(path, LONGEST_JSON, "checkpoint")
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
            files = [_shard(folder, name, value) for value in sorted(set(map(str, table.values())))]
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


def _shard(folder: Path, index: str, name: str) -> Path:
    check_path(name, str(folder / index))
    # Links are followed: in the hub's cache every file is one.
    if Path(name).name != name:
        raise UserError(
            f"{folder / index} names the shard {shown(name)}, which is not beside it. Nothing else "
            f"is read. {AGAIN}"
        )
    return folder / name


def read_weights(file: Path) -> dict[str, Any]:
    """What one file of weights holds, with its tensors and those of a state dict in it mapped.

    Of other tensors, such as the moments of an optimizer, it holds a record.

    Raises:
        UserError: as `read_checkpoint`.
    """
    descriptor = open_regular(file, "checkpoint")
    try:
        return _content(file, descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _content(file: Path, descriptor: int, size: int) -> dict[str, Any]:
    head = os.read(descriptor, 64)
    try:
        # Before pickles: the length of a safetensors header may begin with their first byte.
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER:
            return load_file(file)
        if not head.startswith((b"PK\x03\x04", b"\x80")):
            raise UserError(f"{file} {_what_it_is(head)}")
        return _tensors_of(TorchFile(file, descriptor))
    except UserError:
        raise
    except ForbiddenName as name:
        raise UserError(
            f"{file} is a pickle that asks for {shown(str(name))}, which is neither a tensor nor a "
            "known configuration class. Nothing of it was executed. Do not load this file with "
            "other tools; get the weights from a source you trust, best as safetensors"
        ) from name
    # Cut off and scrambled files were seen to raise a dozen classes from zipfile, safetensors and
    # the machine that reads pickles.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{file} ({size:,} bytes) is cut off or damaged, or no checkpoint: {shown(reason)}. "
            f"{AGAIN}"
        ) from error


def _tensors_of(saved: TorchFile) -> dict[str, Any]:
    """The content of a file with tensors in the place of their records, where weights are."""
    if not isinstance(saved.content, dict):
        raise UserError(
            f"{saved.path} holds a {type(saved.content).__name__}, not a dictionary of tensors. "
            "Save the model's state_dict() and give that file"
        )
    state = _state_of(saved.content)
    for name, value in state.items():
        unread = isinstance(value, Foreign) and value.name.startswith("torch.")
        if unread or isinstance(value, TensorRecord):
            state[name] = saved.tensor(str(name), value)
    return saved.content


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

"""What torch.save wrote, memory-mapped: the zip of today and the older row of pickles."""

import io
import math
import mmap
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuninglab.errors import UserError
from tuninglab.models.formats.records import Foreign, Storage, TensorRecord
from tuninglab.models.formats.unpickling import Machine
from tuninglab.untrusted import shown

# Of what describes the tensors, without their values: a file of 2,000 tensors and the states of
# their optimizer has 2 MiB of it.
LONGEST_PICKLE = 64 * 2**20  # bytes
# torch/serialization.py: how the older format begins.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MOST_DIMENSIONS = 64  # torch's own limit
AGAIN = "Download or copy it again and compare its size with the source"


class TorchFile:
    """A file of torch.save: what it holds, tensors as records, and those tensors.

    Attributes:
        path: of the file.
        content: what was saved, in dicts, lists, tuples, texts, numbers and the records of
            records.py.
    """

    def __init__(self, path: Path, descriptor: int):
        """Read the descriptions; the values are mapped and read when a tensor is used.

        Args:
            path: for messages.
            descriptor: of the file, which is regular and not empty; to be closed when the last
                tensor has been asked for.

        Raises:
            ForbiddenName: it asks for what is neither a tensor nor a known container.
            Exception: of many classes, where it is damaged.
        """
        self.path = path
        # Private: nothing that is written into a tensor gets into the file.
        self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8).untyped_storage()
        self._roots: dict[tuple[str, bool], torch.UntypedStorage] = {}
        # By the key of a storage: its first byte in the file and how many there are.
        self._places: dict[str, tuple[int, int]] = {}
        machine = Machine()
        self._file = os.fdopen(descriptor, "rb", closefd=False)
        if self._map[:2] == b"PK":
            self._places = self._entries()
            if self._part("byteorder") == b"big":
                raise UserError(f"{path} is of a big-endian machine; save it as safetensors there")
            self.content = machine.read(io.BytesIO(self._part("data.pkl")))
        else:
            length = min(len(self._map), LONGEST_PICKLE)
            stream: Any = mmap.mmap(descriptor, length, access=mmap.ACCESS_READ)
            if machine.read(stream) != MAGIC or machine.read(stream) != PROTOCOL:
                raise ValueError("it is a pickle, but torch.save did not write it")
            machine.read(stream)  # of the system
            self.content = machine.read(stream)
            self._places = self._row(machine, machine.read(stream), stream.tell())

    def tensor(self, name: str, record: TensorRecord | Foreign) -> Tensor:
        """One tensor of the file, mapped.

        Raises:
            UserError: it is not a dense one, or lies outside of the file.
        """
        if isinstance(record, Foreign):
            raise UserError(
                f"{self.path}: {shown(name)} is no dense tensor ({record.name}). Save it dense "
                "(.to_dense(), .dequantize()) and give that file"
            )
        offset, size, stride = record.place
        if not self._holds(record):
            raise UserError(
                f"{self.path} is damaged: {shown(name)} does not lie where the file says. {AGAIN}"
            )
        if math.prod(size) * record.dtype.itemsize > len(self._map):
            raise UserError(
                f"{self.path}: {shown(name)} of shape {shown(size)} repeats its values beyond the "
                "size of the file. Save it without strides of 0 (.clone()) and give that file"
            )
        root = self._root(record.storage, record.dtype.itemsize)
        return torch.empty(0, dtype=record.dtype).set_(root, offset, size, stride)

    def _holds(self, record: TensorRecord) -> bool:
        """Whether a tensor has a place, which lies within its storage, and that within the file."""
        offset, size, stride = record.place
        if not type(size) is type(stride) is tuple or len(size) != len(stride):
            return False
        numbers = (offset, *size, *stride)
        if len(size) > MOST_DIMENSIONS or any(type(n) is not int or n < 0 for n in numbers):
            return False
        end = offset
        if math.prod(size):
            end += 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        _, held = self._places.get(record.storage.key, (0, -1))
        return end * record.dtype.itemsize <= record.storage.size <= held

    def _root(self, storage: Storage, alignment: int) -> torch.UntypedStorage:
        """All bytes of a storage, the same object for all tensors that share them."""
        start, held = self._places[storage.key]
        # The older format puts values where they come to lie.
        aligned = start % alignment == 0
        root = self._roots.get((storage.key, aligned))
        if root is None:
            if aligned:
                root = self._bytes[start : start + held]
            else:
                # Read, not copied out of the map: that took a fifth longer.
                content = torch.empty(held, dtype=torch.uint8)
                self._file.seek(start)
                buffer: Any = content.numpy()
                self._file.readinto(buffer)
                root = content.untyped_storage()
            self._roots[storage.key, aligned] = root
        return root

    def _entries(self) -> dict[str, tuple[int, int]]:
        """The parts of a zip, by name without folders: where each lies, and its size."""
        places = {}
        with zipfile.ZipFile(self._file) as archive:
            entries = archive.infolist()
        folder = entries[0].filename.partition("/")[0]
        for entry in entries:
            if not entry.filename.startswith(f"{folder}/"):
                continue
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise UserError(
                    f"{self.path} was compressed, which torch.save does not do: its tensors cannot "
                    "be mapped. Load it where it comes from and save it anew"
                )
            # Its own header is followed by its name and by a field that aligns the content.
            begin = entry.header_offset
            header = self._map[begin : begin + 30]
            lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]
            begin += 30 + sum(lengths)
            if header[:4] != b"PK\x03\x04" or begin + entry.file_size > len(self._map):
                raise ValueError(f"{shown(entry.filename)} lies outside of it")
            name = entry.filename.removeprefix(f"{folder}/").removeprefix("data/")
            places[name] = (begin, entry.file_size)
        if any(name.startswith("code/") for name in places):
            raise UserError(
                f"{self.path} is a TorchScript archive: code, as OpenAI published its towers, and "
                "not only weights. In place of OpenAI's ViT-L-14.pt give "
                "openai/clip-vit-large-patch14"
            )
        return places

    def _part(self, name: str) -> bytes:
        start, size = self._places.get(name, (0, 0))
        if size > LONGEST_PICKLE:
            raise ValueError(f"its {name} is longer than {LONGEST_PICKLE >> 20} MiB")
        return self._map[start : start + size]

    def _row(self, machine: Machine, keys: Any, begin: int) -> dict[str, tuple[int, int]]:
        """The storages of the older format: one after the other, each after its length."""
        places = {}
        for key in keys:
            # Never the text of a list, which can be endless.
            storage = machine.storages[str(key) if type(key) is int else key]
            if storage.dtype is None:
                raise UserError(f"{self.path} holds quantised tensors; save it without them")
            count = int.from_bytes(self._map[begin : begin + 8], "little")
            size = count * storage.dtype.itemsize
            begin += 8
            if begin + size > len(self._map):
                raise ValueError(f"the values of storage {shown(storage.key)} are cut off")
            places[storage.key] = (begin, size)
            begin += size
        return places

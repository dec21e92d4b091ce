"""What turns of a dialogue have in common, kept from one to the next: pictures and beginnings."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from tuninglab.data.batches import image_pixels
from tuninglab.errors import UserError

# What keys and values of a token depend on beside those before it: its id, and the picture it sees.
Signature: TypeAlias = Sequence[tuple[int, str | None]]
# Keys and values (1, heads, T, head) of each layer.
Layers: TypeAlias = list[tuple[Tensor, Tensor]]


class KeptLatents:
    """Latents of pictures by the content of their files, those that were used last.

    Args:
        most: pictures.
    """

    def __init__(self, most: int):
        self.most = most
        self.kept: OrderedDict[tuple[str | None, str], Tensor] = OrderedDict()

    def of(
        self, model: Any, image_processor: Any, files: Sequence[bytes], eyes: str | None
    ) -> tuple[Tensor | None, list[str]]:
        """Latents (1, M, L, D) of picture files, None without pictures; and their names.

        Args:
            model: a Flamingo.
            image_processor: of its tower.
            files: the bytes of M picture files.
            eyes: name of the adapter whose tower or Perceiver is on; None: the base's.

        Raises:
            UserError: a picture cannot be read.
        """
        names = [hashlib.sha256(file).hexdigest() for file in files]
        rows = []
        for number, (name, file) in enumerate(zip(names, files, strict=True), 1):
            key = (eyes, name)
            if key not in self.kept:
                # Each alone, so that a picture's latents do not depend on its company.
                try:
                    pixels = image_pixels([file], image_processor)
                except UserError as error:
                    raise UserError(f"picture {number}: {error}") from error
                assert pixels is not None
                pixels = pixels.unsqueeze(0).to(model.device)  # (B=1, M=1, F=1, 3, H, W)
                self.kept[key] = model.encode_images(pixels)  # (1, 1, L, D)
            self.kept.move_to_end(key)
            rows.append(self.kept[key])
        while len(self.kept) > self.most:
            self.kept.popitem(last=False)
        return (torch.cat(rows, dim=1) if rows else None), names


@dataclass
class _Prefix:
    model: str
    signature: Signature
    layers: Layers

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for pair in self.layers for tensor in pair)


class KeptPrefixes:
    """Keys and values of dialogues that were answered last, for those that go on from them.

    Args:
        most: dialogues.
        most_bytes: of all together.
    """

    def __init__(self, most: int, most_bytes: int):
        self.most, self.most_bytes = most, most_bytes
        self.kept: list[_Prefix] = []  # the one that was used last stands last

    def longest(self, model: str, signature: Signature) -> tuple[int, DynamicCache]:
        """How many tokens of a dialogue are known, and a cache of them, which may be grown.

        The last one is never among them: what follows it is to be computed.
        """
        known = [
            (common(prefix.signature, signature), prefix)
            for prefix in self.kept
            if prefix.model == model
        ]
        length, best = max(known, key=lambda pair: pair[0], default=(0, None))
        length = min(length, len(signature) - 1)
        cache = DynamicCache()
        if not length or best is None:
            return 0, cache
        self.kept.remove(best)
        self.kept.append(best)
        for number, (keys, values) in enumerate(best.layers):
            cache.update(keys[:, :, :length], values[:, :, :length], number)
        return length, cache

    def keep(self, model: str, signature: Signature, layers: Layers) -> None:
        """Keep a dialogue in place of its own beginnings.

        Args:
            model: that read it.
            signature: of T tokens.
            layers: their keys and values, which nobody changes.
        """
        new = _Prefix(model, signature, layers)
        self.kept = [p for p in self.kept if p.model != model or not _begins(p, signature)]
        self.kept.append(new)
        while self.kept and (len(self.kept) > self.most or self._size_bytes() > self.most_bytes):
            self.kept.pop(0)

    def _size_bytes(self) -> int:
        return sum(prefix.size_bytes for prefix in self.kept)


def common(one: Signature, other: Signature) -> int:
    """How many tokens two dialogues begin with alike."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _begins(prefix: _Prefix, signature: Signature) -> bool:
    return common(prefix.signature, signature) == len(prefix.signature)

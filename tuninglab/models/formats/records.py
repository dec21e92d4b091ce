"""What a pickle may name, and the records that stand for it: nothing of it is looked up or run."""

from dataclasses import dataclass
from typing import Any

import torch

# Config containers that training scripts save beside their weights, and plain holders of values.
# None of them is imported: each becomes one of the records below.
DICTIONARIES = frozenset(
    {
        "addict.Dict",
        "addict.addict.Dict",
        "easydict.EasyDict",
        "mmcv.utils.config.ConfigDict",
        "mmengine.config.ConfigDict",
        "mmengine.config.config.ConfigDict",
    }
)
OBJECTS = frozenset(
    {
        "_codecs.encode",  # the bytes of a numpy number
        "argparse.Namespace",
        "builtins.bytearray",
        "builtins.set",
        "mmcv.utils.config.Config",
        "mmengine.config.Config",
        "mmengine.config.config.Config",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "types.SimpleNamespace",
    }
)
# Dictionaries of Python's own.
ORDERED = frozenset({"collections.OrderedDict", "collections.Counter"})
# What tensors are made by (torch/_utils.py); other kinds than dense ones are known, but not read.
REBUILD = "torch._utils._rebuild_"
DENSE = {f"{REBUILD}tensor", f"{REBUILD}tensor_v2", f"{REBUILD}tensor_v3"}
WRAPPED = {f"{REBUILD}parameter", f"{REBUILD}parameter_with_state"}
SUBCLASS = "torch._tensor._rebuild_from_type_v2"
TORCH = {"torch.Size", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter", SUBCLASS}
TORCH |= {"torch.serialization._get_layout"}
STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}


class ForbiddenName(Exception):
    """A pickle asks for something beyond tensors and config containers; the text is its name."""


@dataclass(eq=False, slots=True)
class Named:
    """What a pickle names; nothing looks for it."""

    name: str


@dataclass(eq=False, slots=True)
class Foreign:
    """A foreign object: what it would have been made by, and from what."""

    name: str
    held: tuple[Any, ...]


class Dictionary(dict[Any, Any]):
    """A dictionary of another class than dict: its items; of an OrderedDict its attributes too."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.attributes: dict[Any, Any] = {}


@dataclass(eq=False, slots=True)
class Storage:
    """Numbers that tensors share.

    Attributes:
        dtype: of the numbers; None for formats that are not read here.
        key: names it in the file.
        size: in bytes.
        start: of a part of it, which torch's older format knows, the first number.
    """

    dtype: torch.dtype | None
    key: str
    size: int
    start: int


@dataclass(eq=False, slots=True)
class TensorRecord:
    """A dense tensor as its file describes it: offset, size and stride are not checked yet."""

    storage: Storage
    dtype: torch.dtype
    place: tuple[Any, Any, Any]


def named(module: Any, name: Any) -> Any:
    """What a name stands for: a number format, or itself.

    Raises:
        ForbiddenName: it is not on the list.
    """
    if type(module) is not str or type(name) is not str:
        raise ValueError("a name is no text")
    full = f"{module}.{name}"
    # Not getattr, which imports parts of torch for some names.
    dtype = vars(torch).get(name) if module == "torch" else None
    if isinstance(dtype, (torch.dtype, torch.qscheme)):
        return dtype
    storage = module.startswith("torch") and name.endswith("Storage") and "." not in name
    known = full in DICTIONARIES or full in OBJECTS or full in ORDERED or full in TORCH
    if not (known or storage or full.startswith(REBUILD)):
        raise ForbiddenName(full)
    return Named(full)

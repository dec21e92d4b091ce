"""Reading pickles that name foreign classes without importing or running any of them."""

import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch._utils

# Config containers that training scripts save beside their weights, and plain holders of values.
# None of them is imported: each name is answered with one of the stand-ins below.
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
HARMLESS = DICTIONARIES | OBJECTS

# What plain dense tensors need; torch's own weights-only reader allows these too.
ALLOWED = {
    "collections.OrderedDict": OrderedDict,
    "torch.Size": torch.Size,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch.device": torch.device,
}


class ForbiddenName(Exception):
    """A pickle asks for something beyond tensors and config containers; the text is its name."""


class DictionaryStandIn(dict):
    """Takes the place of a foreign dict subclass: keeps its items, runs none of its code."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*(arg for arg in args[:1] if isinstance(arg, dict)), **kwargs)

    def __setstate__(self, state: Any) -> None:
        # addict gives itself as its state.
        if isinstance(state, dict) and state is not self:
            self.update(state)


class ObjectStandIn:
    """Takes the place of a foreign object: keeps what it was built from, runs none of its code."""

    def __new__(cls, *args: Any) -> "ObjectStandIn":
        """Both ways in which a pickle makes an object come through here, __init__ only one."""
        self = super().__new__(cls)
        self.held = args
        return self

    def __setstate__(self, state: Any) -> None:
        self.held = (state,)


class RestrictedUnpickler(pickle.Unpickler):
    """Resolves names to tensors' building blocks and inert stand-ins, and to nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for.

        Raises:
            ForbiddenName: it is not on the list. Raised before anything could be called.
        """
        full = f"{module}.{name}"
        if full in DICTIONARIES:
            return DictionaryStandIn
        if full in OBJECTS:
            return ObjectStandIn
        if full in ALLOWED:
            return ALLOWED[full]
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise ForbiddenName(full)


class RestrictedPickle:
    """What `torch.load(pickle_module=...)` asks for; storages it resolves itself, by their name."""

    Unpickler = RestrictedUnpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        """One pickle of a file in torch's older format."""
        return RestrictedUnpickler(file, **options).load()


def plain(value: Any, seen: tuple[int, ...] = ()) -> Any:
    """Dicts, lists, texts and numbers of a value; None for what is none of these.

    Of an object its dictionary is kept: the attributes, or the items of a Config.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    # An object may hold itself.
    if id(value) in seen:
        return None
    seen = (*seen, id(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item, seen) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item, seen) for item in value]
    return _of_object(value, seen) if isinstance(value, ObjectStandIn) else None


def _of_object(value: ObjectStandIn, seen: tuple[int, ...]) -> Any:
    held = list(_flat(value.held))
    for item in held:
        if isinstance(item, Mapping):
            # mmengine 0.7 keeps the items of a Config in one attribute.
            inner = item.get("_cfg_dict")
            return plain(inner if isinstance(inner, Mapping) else item, seen)
    # A path is its parts.
    return "/".join(held) if held and all(isinstance(item, str) for item in held) else None


def _flat(items: Iterable[Any]) -> Iterable[Any]:
    for item in items:
        yield from item if isinstance(item, tuple) else (item,)

"""The tensors of a model: what they weigh, and how those spread over processes become whole.

One account of bytes for trees, measurements and plans. Sharded weights (FSDP2) are DTensors, of
which each process holds a part: whoever saves needs them whole.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def storage_key(tensor: Tensor) -> int:
    """What tells the memory of a tensor from that of others; views of one storage are equal."""
    storage = tensor.untyped_storage()
    # Without numbers a storage has no address, but it is one thing for all its views.
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        return storage._cdata
    return storage.data_ptr() or id(tensor)


def bytes_held(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind some tensors, each storage once; on the meta device to be."""
    sizes = {storage_key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(sizes.values())


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is nan or infinite; reads them once and copies nothing.

    Whole numbers are, and of 8-bit floats it is not known.
    """
    if not tensor.numel() or not tensor.is_floating_point() or tensor.itemsize == 1:
        return True
    # isfinite makes four more of the tensor's size and took 40 times as long. nan passes through.
    return all(bool(end.isfinite()) for end in tensor.aminmax())


def is_sharded(model: nn.Module) -> bool:
    """Whether some weights of a model are spread over processes (FSDP2 makes DTensors of them)."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def own_class(model: nn.Module) -> type:
    """The class of a model as it was made: FSDP2 puts one of its own in its place."""
    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, those of shards put together: all processes must ask, in one order."""
    full = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in full.items()}


@torch.no_grad()
def put(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter, or this process's part of it where it is sharded."""
    parameter.copy_(spread_as(parameter, value))


def spread_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole tensor that all processes have, sharded as a parameter of its shape is, if it is."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh, places = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.to(parameter.device), mesh, places)

"""What the tensors of a model weigh: one account for trees, measurements and plans."""

from collections.abc import Iterable

from torch import Tensor


def storage_key(tensor: Tensor) -> int:
    """What tells the memory of a tensor from that of others; views of one storage are equal."""
    # Storages on the meta device have no address: there, tensors are told apart.
    return tensor.untyped_storage().data_ptr() or id(tensor)


def bytes_held(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind some tensors, each storage once; on the meta device to be."""
    sizes = {storage_key(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(sizes.values())

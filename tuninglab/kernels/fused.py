"""Several operations of torch as one pass, on devices where compiling makes one kernel of them."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def fused(function: Callable, tensor: Tensor) -> Callable:
    """The function as it runs best on the tensor's device: compiled on GPUs, as it is elsewhere."""
    if tensor.is_cuda and not torch.compiler.is_compiling():
        return _compiled(function)
    return function


@functools.cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=True)

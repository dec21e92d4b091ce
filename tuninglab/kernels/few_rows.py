"""Few rows times a whole weight, as generation multiplies them: each weight is read once, in C.

With one token a row nearly all time goes into reading the weights. For two rows of float32 torch
read them at 7 to 13 GB/s, on an AMD CPU whose memory gives one thread 33 GB/s.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from tuninglab.kernels import compiled, gpu
from tuninglab.kernels.dispatch import SUFFIXES, Kernel
from tuninglab.kernels.products import FastLinear
from tuninglab.kernels.shapes import current_shapes

_FEW_ROWS = Kernel("few_rows(x: T[M K], weight: T[N K], bias: T[N]?) -> y: T[M N]")
_FEW_ROWS_INT8 = Kernel("few_rows_int8(x: T[M K], weight: i8[N K], scale: f32[N]) -> y: T[M N]")
# Up to so many rows C was the faster one, by the format of the weight. For more rows of bfloat16
# torch has products of pairs of them (AVX512-BF16), which C is not given.
MOST_ROWS = {torch.float32: 8, torch.bfloat16: 4, torch.int8: 8}
# Below, a call costs as much as the product.
SMALLEST = 1 << 16


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether x (..., K) is few rows for a weight (N, K), without a gradient, for C or Triton."""
    size = weight.shape[1]
    if torch.is_grad_enabled() or not x.numel():
        return False
    if x.shape[-1] != size or not weight.is_contiguous():
        return False
    if gpu.serves(weight.device):
        few = x.device == weight.device and x.numel() <= gpu.FEW_ROWS * size
        # In other formats torch's own products are left as they are: nothing was measured.
        whole = weight.dtype == torch.int8 and x.dtype in gpu.FORMATS
        return few and whole and not torch.is_autocast_enabled(gpu.KIND)
    return (
        x.numel() <= MOST_ROWS.get(weight.dtype, 0) * size
        and weight.numel() >= SMALLEST
        and x.dtype in SUFFIXES
        and x.is_cpu
        and weight.is_cpu
        # A compiled graph fuses what torch does; autocast has formats of its own.
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and compiled.library() is not None
    )


def int8_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Rows x (..., K) that fit, times int8 rows (N, K) of float32 scale (N,): (..., N)."""
    if gpu.serves(x.device):
        from tuninglab.kernels.triton_products import few_rows

        rows = x.reshape(-1, x.shape[-1]).contiguous()
        return few_rows(rows, weight, scale).view(*x.shape[:-1], len(weight))
    return _product(_FEW_ROWS_INT8, x, weight, scale)


def _product(kernel: Kernel, x: Tensor, weight: Tensor, beside: Tensor | None) -> Tensor:
    x, (out, size) = x.contiguous(), weight.shape
    y = x.new_empty((*x.shape[:-1], out))
    if (shapes := current_shapes()) is not None:
        shapes.note_kernel(kernel.name, [x, weight], [y])
        return y
    address = 0 if beside is None else beside.data_ptr()
    kernel.unchecked(x.dtype)(
        x.data_ptr(), weight.data_ptr(), address, y.data_ptr(), x.numel() // size, size, out
    )
    return y


def _forward(linear: nn.Linear, input: Tensor) -> Tensor:
    """What nn.Linear computes, (..., K) -> (..., N), under nn.Linear's name of its argument."""
    weight, bias = linear.weight, linear.bias
    alike = input.dtype is weight.dtype and (bias is None or bias.dtype is weight.dtype)
    if alike and fits(input, weight):
        return _product(_FEW_ROWS, input, weight, bias)
    return type(linear).forward(linear, input)


def is_few_rows(forward: partial) -> bool:
    """Whether a layer's own `forward` is the one that it has within `few_rows_in_c`."""
    return forward.func is _forward


@contextmanager
def few_rows_in_c(model: nn.Module) -> Iterator[None]:
    """Within the block the model's plain linear layers multiply few rows in C.

    Each by a `forward` of its own, so that its class, hooks, adapters around it and what is saved
    of it stay as they are. A layer that has such a forward already keeps it.
    """
    linear = (m for m in model.modules() if isinstance(m, nn.Linear))
    # Others of its kind may do more than multiply.
    plain = [m for m in linear if type(m) in (nn.Linear, FastLinear) and "forward" not in vars(m)]
    try:
        for layer in plain:
            layer.forward = partial(_forward, layer)
        yield
    finally:
        for layer in plain:
            vars(layer).pop("forward", None)

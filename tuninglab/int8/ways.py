"""How an int8 layer multiplies on a device: as int8, or with its weight made float for the use."""

import functools
from typing import Literal

import torch

from tuninglab.kernels import gpu

Way = Literal["int8", "dequantise"]

# What torch.cpu.get_capabilities calls arithmetic on int8. Without it a product of int8 numbers is
# slower than one of float numbers.
INT8_CAPABILITIES = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "avx10_1", "avx10_2")
# torch._int_mm on CUDA, where Triton is not: more than 16 rows, multiples of 8 otherwise (torch
# 2.13).
CUDA_FEWEST_ROWS, CUDA_MULTIPLE = 17, 8
# On Hopper and later it wants the weight transposed for the backward product, which is a copy. By
# arithmetic, not measured: about half of the product's time at 512 rows, 2 % at 16,384.
CUDA_BACKWARD_ROWS = 1024


@functools.cache
def way_of(device_type: str) -> tuple[Way, str]:
    """The usual way on a kind of device, with the reason."""
    if device_type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        found = [name for name in INT8_CAPABILITIES if capabilities.get(name)]
        if found:
            return "int8", f"this CPU multiplies int8 ({', '.join(found)})"
        return "dequantise", "this CPU has no int8 arithmetic we know of (VNNI, AMX)"
    if device_type == "cuda" and torch.cuda.get_device_capability() >= (7, 5):
        return "int8", "this GPU multiplies int8"
    return "dequantise", f"int8 products are not offered on this {device_type}"


def ways(device: torch.device, rows: int, shape: torch.Size) -> tuple[Way, Way]:
    """The ways forward and backward for `rows` tokens and a weight of `shape` (N, K)."""
    if gpu.serves(device):
        # Of any size, and with the weight as it lies.
        return "int8", "int8"
    way, _ = way_of(device.type)
    if way == "int8" and device.type == "cuda":
        if rows < CUDA_FEWEST_ROWS or any(size % CUDA_MULTIPLE for size in shape):
            return "dequantise", "dequantise"
        return "int8", "int8" if rows >= CUDA_BACKWARD_ROWS else "dequantise"
    return way, way

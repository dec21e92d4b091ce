"""Whether Triton serves a GPU here, and why: asked once, and tried on numbers before it is used.

Triton comes with torch's builds for CUDA on Linux. It is imported where it is used, so that CPUs
never wait for it.
"""

import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from tuninglab.kernels import compiled

# The formats of numbers that its kernels take beside int8.
FORMATS = {torch.float32, torch.bfloat16, torch.float16}
KIND = "cuda"  # of the devices that it serves
FEW_ROWS = 16  # of a product: a tile of the tensor cores has so many, whether filled or not
# The kernels were compiled for 8.0 and 9.0. Older tensor cores have no bfloat16.
OLDEST = (8, 0)


def serves(device: torch.device) -> bool:
    """Whether the Triton kernels run on a device, outside of graphs that torch compiles."""
    return device.type == KIND and not torch.compiler.is_compiling() and _tried()[0]


def passes_here(device: torch.device) -> tuple[str, str]:
    """What makes the passes over rows on a device, and why."""
    if device.type == "cpu":
        return compiled.kernels_here()
    found, reason = _tried()
    if found:
        return "Triton", reason
    # dispatch.run compiles for these alone, which needs a C compiler.
    compiles = device.type == KIND and compiled.c_compiler()
    return "torch, compiled" if compiles else "torch, in several steps", reason


def launch_rows(name: str, passed: list[Any], rows: int, columns: int, beside: Tensor) -> None:
    """Run the function of a name in triton_rows on the GPU of a tensor, a program a row."""
    from tuninglab.kernels import triton_rows

    with torch.cuda.device_of(beside):
        getattr(triton_rows, name)[rows,](*passed, **triton_rows.blocks(columns))


@functools.cache
def _tried() -> tuple[bool, str]:
    reason = _missing()
    if reason is not None:
        return False, reason
    try:
        agrees = _agrees(torch.device(KIND))
    # Whatever a compiler, a driver or a launch can raise: torch's own way is there.
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        return False, f"Triton failed: {type(error).__name__}: {said}"
    if not agrees:
        return False, "tried: Triton gives other numbers than torch here"
    return True, "tried here: it gives what torch gives"


def _agrees(device: torch.device) -> bool:
    """Whether rounding, and products both ways, give what torch gives on some numbers."""
    from tuninglab.kernels.triton_products import int8_product

    x = torch.linspace(-3, 2, 40 * 96, device=device).view(40, 96).contiguous()
    q, scale = torch.empty_like(x, dtype=torch.int8), x.new_empty(40)
    launch_rows("quantise_rows", [x, 96, None, q, scale, 40, 96], 40, 96, x)
    same = torch.allclose(scale, x.abs().amax(1) / 127)
    same &= bool((q.float() - x / scale[:, None]).abs().max() < 0.501)
    weight = (torch.arange(72 * 96, device=device) * 37 % 255 - 127).view(72, 96).to(torch.int8)
    low, up = x[:, :8] / 8, x[:8, :72] / 8
    y = int8_product(q, weight.t(), scale, scale.repeat(2)[:72], x.dtype, (low, up, 0.5))
    sums = (q.double() @ weight.double().t()) * scale[:, None] * scale.repeat(2)[:72]
    same &= torch.allclose(y, (sums + 0.5 * low.double() @ up.double()).float(), 1e-4, 1e-4)
    back = int8_product(q[:, :72].contiguous(), weight)
    return same and torch.equal(back.double(), q[:, :72].double() @ weight.double())


def _missing() -> str | None:
    """What the Triton kernels want and this machine has not."""
    if os.environ.get("TUNINGLAB_NATIVE") == "0":
        return "TUNINGLAB_NATIVE=0"
    if not torch.cuda.is_available() or torch.version.hip:
        return "the Triton kernels are for GPUs of NVIDIA"
    capabilities = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    if min(capabilities) < OLDEST:
        return "this GPU is older than the Triton kernels are made for (8.0)"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install 'tuninglab[gpu]')"
    if compiled.c_compiler() is None:
        return "no C compiler (cc, gcc) was found, which Triton needs"
    return None

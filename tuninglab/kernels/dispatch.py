"""The one way to a kernel: C on CPUs, Triton on GPUs, where they can be had; else torch.

Every argument is checked before C or Triton sees it.

A kernel is declared once, beside its user, by a signature in the manner of torch's operators:

    Kernel("quantise_rows(x: T[M~ K], column: f32[K]?) -> q: i8[M K], scale: f32[M]")

Tensors have a format (T is that of the call, float32 or bfloat16) and named sizes, which are equal
wherever a name stands again. Inputs lie without gaps, but along axes with a `~`, whose steps are
passed. `?` marks what may be None, `if u` what is there where u is; int and float are numbers; a
lone T names the format. What stands behind the arrow is made here. C and Triton functions take all
in this order, steps behind their tensor, and then the sizes as they first stand.
"""

import ctypes
import functools
import re
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from tuninglab.kernels import compiled, gpu
from tuninglab.kernels.shapes import current_shapes

# The formats that kernels are compiled for, and how their names in C end.
SUFFIXES = {torch.float32: "_f32", torch.bfloat16: "_bf16"}
OTHERS = {torch.float16, torch.float64}
CPU = torch.device("cpu")
WHOLE = {"i8": torch.int8, "i32": torch.int32, "i64": torch.int64, "bool": torch.bool}
DTYPES = {"f32": torch.float32, **WHOLE}
NUMBERS: dict[str, type] = {"int": int, "float": float}
PART = re.compile(r"(\w+): (\w+)(?:\[([^]]+)\])?(\??)(?: if (\w+))?")


def _parts(text: str) -> list[tuple[str, str, list[str], list[int], str, str]]:
    """Name, format, names of the sizes, axes with a `~`, `?` or nothing, what it stands beside."""
    return [
        (name, kind, re.findall(r"\w+", shape), _stepped(shape.split()), optional, beside)
        for name, kind, shape, optional, beside in PART.findall(text)
    ]


def _stepped(axes: list[str]) -> list[int]:
    return [number for number, axis in enumerate(axes) if "~" in axis]


class Kernel:
    """A function in C and in Triton, from its signature; arguments are checked before it runs."""

    def __init__(self, signature: str):
        self.name, _, rest = signature.partition("(")
        self.inputs, self.outputs = map(_parts, f"{rest} -> ".split(" -> ")[:2])
        # As wide as pointers and sizes are: without a type ctypes would pass 32 bits.
        self.kinds: list[Any] = []
        for _, kind, names, steps, *_ in (*self.inputs, *self.outputs):
            if names:
                self.kinds += [ctypes.c_long] * (1 + len(steps))
            elif kind != "T":
                self.kinds.append(ctypes.c_float if kind == "float" else ctypes.c_long)
        sizes = {size for _, _, names, *_ in self.inputs for size in names}
        self.kinds += [ctypes.c_long] * len(sizes)

    def __call__(self, *given: Any) -> Any:
        """Run it in C on CPU tensors; returns its outputs, one alone as it is.

        Raises:
            ValueError: the C function would read or write past an argument, or misread it.
        """
        dtype, passed, made, _ = self._laid_out(given, SUFFIXES, CPU)
        if (shapes := current_shapes()) is not None:
            shapes.note_kernel(self.name, [v for v in passed if isinstance(v, Tensor)], made)
            return made[0] if len(made) == 1 else made
        # 0 is the address of what is absent.
        told = [v.data_ptr() if isinstance(v, Tensor) else 0 if v is None else v for v in passed]
        self.unchecked(dtype)(*told)
        return made[0] if len(made) == 1 else made

    def launch(self, *given: Any) -> Any:
        """Run it in Triton, a program a row, where `in_triton` allows it; as in C.

        Raises:
            ValueError: an argument does not fit the signature.
        """
        first = next(value for value in given if isinstance(value, Tensor))
        _, passed, made, sizes = self._laid_out(given, gpu.FORMATS, first.device)
        rows, columns = sizes.values()
        gpu.launch_rows(self.name, passed, rows, columns, first)
        return made[0] if len(made) == 1 else made

    def _laid_out(
        self, given: Any, formats: Collection[torch.dtype], device: torch.device
    ) -> tuple[torch.dtype, list[Any], list[Any], dict[str, int]]:
        """Format, checked arguments in the order of the function, outputs among them, and sizes."""
        sizes: dict[str, int] = {}
        absent, passed, dtype = set(), [], None
        for argument, value in zip(self.inputs, given, strict=True):
            name, kind, names, steps, optional, beside = argument
            if value is None and (optional or beside in absent):
                absent.add(name)
                passed += [None, *(0 for _ in steps)]
            elif names:
                if kind == "T" and dtype is None:
                    first = getattr(value, "dtype", None)
                    dtype = first if first in formats else torch.float32
                steps = self._checked(argument, value, DTYPES.get(kind) or dtype, sizes, device)
                passed += [value, *steps]
            elif kind == "T":
                dtype = value
            else:
                passed.append(NUMBERS[kind](value))
        dtype, made = dtype or torch.float32, []
        for _, kind, names, _, _, beside in self.outputs:
            shape, out = [sizes[name] for name in names], DTYPES.get(kind, dtype)
            there = beside not in absent
            made.append(torch.empty(shape, dtype=out, device=device) if there else None)
        return dtype, [*passed, *made, *sizes.values()], made, sizes

    def unchecked(self, dtype: torch.dtype) -> Callable[..., Any]:
        """The C function for a format, to be called with addresses, steps and sizes.

        For a caller that has made sure of its arguments, where a call takes microseconds: checking
        them in general takes 10.
        """
        function = getattr(compiled.library(), self.name + SUFFIXES[dtype])
        if function.argtypes is None:
            function.argtypes = self.kinds
        return function

    def _checked(
        self, argument: Any, tensor: Any, dtype: Any, sizes: dict, device: Any
    ) -> list[int]:
        """The steps of a tensor that fits."""
        name, _, names, steps, *_ = argument
        shape = tensor.shape if isinstance(tensor, Tensor) else ()
        fits = len(shape) == len(names) and tensor.dtype is dtype and tensor.device == device
        for axis, size in zip(names, shape, strict=False):
            fits = sizes.setdefault(axis, size) == size and fits
        if not (fits and (tensor.is_contiguous() or _lies_right(tensor, steps))):
            wanted = ", ".join(f"{axis}={sizes.get(axis)}" for axis in names)
            raise ValueError(
                f"kernel {self.name}: {name} is {_told(tensor)}; expected {dtype} ({wanted}) "
                f"without gaps on {device}"
            )
        return [tensor.stride(axis) for axis in steps]


def _told(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype} {tuple(value.shape)}, strides {value.stride()}, on {value.device}"


def _lies_right(tensor: Tensor, steps: list[int]) -> bool:
    # Where an axis has steps, only the last one is read as lying without gaps.
    last = tensor.ndim - 1
    return bool(steps) and (last in steps or tensor.shape[last] < 2 or tensor.stride(last) == 1)


def in_c(*given: Any) -> bool:
    """Whether the C kernels can take these: on the CPU, in their formats, kernels built."""
    # A compiled graph fuses torch's own operations; a call out of it would split it.
    if torch.compiler.is_compiling() or compiled.library() is None:
        return False
    for value in given:
        kind = value.dtype if isinstance(value, Tensor) else value
        if kind in OTHERS or (kind is not value and not value.is_cpu):
            return False
    return True


def in_triton(*given: Any) -> bool:
    """Whether the Triton kernels can take these: on one GPU that they serve, in their formats."""
    devices = {value.device for value in given if isinstance(value, Tensor)}
    kinds = {value.dtype if isinstance(value, Tensor) else value for value in given}
    return len(devices) == 1 and torch.float64 not in kinds and gpu.serves(*devices)


def run(kernel: Kernel, in_torch: Callable[..., Any], *given: Any) -> Any:
    """What a kernel computes, in the way that is best for these arguments.

    Args:
        kernel: the function in C and in Triton.
        in_torch: the same in torch, for every device and format.
        given: what both take.

    Raises:
        ValueError: it would run in C or Triton, and an argument does not fit its signature.
    """
    if in_c(*given):
        return kernel(*given)
    if in_triton(*given):
        return kernel.launch(*given)
    on_gpu = any(getattr(value, "is_cuda", False) for value in given)
    if on_gpu and not torch.compiler.is_compiling() and compiled.c_compiler():
        # Compiling makes one kernel of it.
        in_torch = _compiled(in_torch)
    return in_torch(*given)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)

"""The one way to a kernel: C where it can be had, else torch; every argument is checked for C.

A kernel is declared once, beside its user, by a signature in the manner of torch's operators:

    Kernel("quantise_rows(x: T[M~ K], column: f32[K]?) -> q: i8[M K], scale: f32[M]")

Tensors have a format (T is that of the call, float32 or bfloat16) and named sizes, which are equal
wherever a name stands again. Inputs lie without gaps, but along axes with a `~`, whose steps are
passed. `?` marks what may be None, `if u` what is there where u is; int and float are numbers; a
lone T names the format. What stands behind the arrow is made here. The C function takes all in
this order, steps behind their tensor, and then the sizes as they first stand.
"""

import ctypes
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tuninglab.kernels import compiled

# The formats that kernels are compiled for, and how their names in C end.
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
OTHERS = {torch.float16, torch.float64}
WHOLE = {"i8": torch.int8, "i32": torch.int32, "i64": torch.int64, "bool": torch.bool}
DTYPES = {"f32": torch.float32, **WHOLE}
C_TYPES = {"int": ctypes.c_long, "float": ctypes.c_float}
ARGUMENT = re.compile(r"(\w+): (\w+)(?:\[([^]]+)\])?(\??)(?: if (\w+))?")


class _Argument(NamedTuple):
    name: str
    kind: str  # one of DTYPES, C_TYPES, or T
    sizes: list[str]  # none: not a tensor
    steps: list[int]  # axes with a `~`
    optional: bool
    beside: str | None  # the input without which there is none of this


def _arguments(text: str) -> list[_Argument]:
    found = []
    for name, kind, shape, optional, beside in ARGUMENT.findall(text):
        axes = shape.split()
        steps = [number for number, axis in enumerate(axes) if "~" in axis]
        sizes = [axis.rstrip("~") for axis in axes]
        found.append(_Argument(name, kind, sizes, steps, bool(optional), beside or None))
    return found


class Kernel:
    """A function in C, from its signature; calling it checks the arguments and runs it."""

    def __init__(self, signature: str):
        inputs, _, outputs = signature.partition(" -> ")
        self.name = inputs.partition("(")[0]
        self.names = {dtype: f"{self.name}_{end}" for dtype, end in SUFFIXES.items()}
        self.inputs, self.outputs = _arguments(inputs), _arguments(outputs)
        self.c_types: list[Any] = []
        for a in (*self.inputs, *self.outputs):
            # A lone T is not passed: the name of the C function tells the format.
            if a.sizes or a.kind != "T":
                self.c_types.append(ctypes.c_void_p if a.sizes else C_TYPES[a.kind])
            self.c_types += [ctypes.c_long] * len(a.steps)
        self.c_types += [ctypes.c_long] * len({size for a in self.inputs for size in a.sizes})

    def __call__(self, *given: Any) -> Any:
        """Run it on CPU tensors; returns its outputs, one alone as it is.

        Raises:
            ValueError: the C function would read or write past an argument, or misread it.
        """
        sizes: dict[str, int] = {}
        absent: set[str | None] = set()
        dtype, passed = None, []
        for argument, value in zip(self.inputs, given, strict=True):
            name, kind, names, steps, optional, beside = argument
            if value is None and (optional or beside in absent):
                absent.add(name)
                passed += [None, *(0 for _ in steps)]
            elif names:
                wanted = DTYPES.get(kind) or dtype
                if wanted is None:
                    known = getattr(value, "dtype", None) in SUFFIXES
                    dtype = wanted = value.dtype if known else torch.float32
                shape = value.shape if isinstance(value, Tensor) else ()
                fits = len(shape) == len(names) and value.dtype is wanted and value.is_cpu
                for axis, size in zip(names, shape, strict=False):
                    fits = sizes.setdefault(axis, size) == size and fits
                if not (fits and (value.is_contiguous() or _lies_right(value, steps))):
                    self._refuse(argument, value, wanted, sizes)
                passed.append(value.data_ptr())
                passed += [value.stride(axis) for axis in steps]
            elif kind == "T":
                dtype = value
            else:
                passed.append(value)
        dtype, made = dtype or torch.float32, []
        for _, kind, names, _, _, beside in self.outputs:
            there = beside not in absent
            shape = [sizes[name] for name in names]
            made.append(torch.empty(shape, dtype=DTYPES.get(kind, dtype)) if there else None)
            passed.append(made[-1].data_ptr() if there else None)
        function = getattr(compiled.library(), self.names[dtype])
        if function.argtypes is None:
            function.argtypes = self.c_types
        function(*passed, *sizes.values())
        return made[0] if len(made) == 1 else made

    def _refuse(self, argument: _Argument, value: Any, dtype: Any, sizes: dict) -> None:
        wanted = ", ".join(f"{name}={sizes.get(name)}" for name in argument.sizes)
        given = type(value).__name__
        if isinstance(value, Tensor):
            given = f"{value.dtype} {tuple(value.shape)}, strides {value.stride()}, {value.device}"
        raise ValueError(
            f"kernel {self.name}: {argument.name} is {given}; expected {dtype} ({wanted}) without "
            "gaps on the CPU"
        )


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


def run(kernel: Kernel, in_torch: Callable[..., Any], *given: Any) -> Any:
    """What a kernel computes, in the way that is best for these arguments.

    Args:
        kernel: the function in C.
        in_torch: the same in torch, for every device and format.
        given: what both take.

    Raises:
        ValueError: the C function would run, and an argument does not fit its signature.
    """
    if in_c(*given):
        return kernel(*given)
    if not torch.compiler.is_compiling() and any(getattr(t, "is_cuda", False) for t in given):
        # Compiling makes one kernel of it. One in Triton would be chosen here, as C is above.
        in_torch = _compiled(in_torch)
    return in_torch(*given)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)

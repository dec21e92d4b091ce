"""What the C function that decodes a token takes, as decode.h declares it, and its call."""

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from tuninglab.kernels import compiled
from tuninglab.kernels.dispatch import SUFFIXES

_ADDRESS, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float


class Norm(ctypes.Structure):
    """Weight and bias in float32, and epsilon; without a weight there is no norm."""

    _fields_ = [("weight", _ADDRESS), ("bias", _ADDRESS), ("eps", _FLOAT)]


class Matrix(ctypes.Structure):
    """A weight (out, in), int8 where it has scales, its bias, and LoRA of a rank, 0 for none."""

    _fields_ = [
        *((name, _ADDRESS) for name in ("weight", "scale", "bias", "a", "b")),
        *((name, _SIZE) for name in ("out", "size", "rank")),
        ("factor", _FLOAT),
    ]


class Gated(ctypes.Structure):
    """A gated cross-attention block."""

    _fields_ = [
        *((name, Norm) for name in ("attn_norm", "ff_norm")),
        *((name, Matrix) for name in ("to_q", "to_out", "up", "down")),
        *((name, _FLOAT) for name in ("attn_gate", "ff_gate")),
        ("heads", _SIZE),
    ]


class Layer(ctypes.Structure):
    """A decoder layer, the gated block before it if it has one, and its part of the cache."""

    _fields_ = [
        ("before", ctypes.POINTER(Gated)),
        *((name, Norm) for name in ("input_norm", "q_norm", "k_norm", "ff_norm")),
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, _ADDRESS) for name in ("keys", "values")),
        ("room", _SIZE),
    ]


class Layers(ctypes.Structure):
    """All layers, the norm behind them and what they share."""

    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        ("last", Norm),
        *((name, _SIZE) for name in ("count", "width", "heads", "kv_heads", "head")),
        *((name, _SIZE) for name in ("widest", "rank", "weights")),
        ("scaling", _FLOAT),
    ]


class Step(ctypes.Structure):
    """One token a row: its embedding, its position and what it sees."""

    _fields_ = [
        *((name, _ADDRESS) for name in ("x", "cos", "sin", "mask", "media", "image")),
        *((name, _SIZE) for name in ("blocks", "images", "latents", "rows", "length")),
    ]


def matrices_of(structure: ctypes.Structure) -> Iterator[Matrix]:
    """The matrices that a layer or a block has."""
    for name, *_ in structure._fields_:
        if isinstance(value := getattr(structure, name), Matrix):
            yield value


def decode(layers: Layers, step: Step, dtype: torch.dtype) -> None:
    """Overwrite the embeddings at `step.x` with what the output layer multiplies.

    Nothing is checked: every address must be that of a tensor on the CPU, without gaps, of the
    shape that decode.h names, and alive.
    """
    function = getattr(compiled.library(), f"decode{SUFFIXES[dtype]}")
    function(ctypes.byref(layers), ctypes.byref(step))


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor lies; None for none."""
    return None if tensor is None else tensor.data_ptr()

"""Computing without numbers: what a model would do, told by shapes alone.

Inside `Shapes`, tensors of floats and of int8 have a shape, a format and a device, but no memory
(torch's FakeTensor). Ids, labels and masks are real and small, so that code which looks at them
(which positions have a label, does the mask hide anything) goes the way it would go.
"""

from collections.abc import Iterable, Iterator, ValuesView
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

CPU = torch.device("cpu")
META = torch.device("meta")
# What is computed for real: formats of ids, labels, masks and positions.
REAL = (torch.int64, torch.bool)
DEVICE_OF = torch.ops.prim.device.default
BY_INDEX = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)

_current: "Shapes | None" = None


def current_shapes() -> "Shapes | None":
    """The mode that is on; None: numbers are computed."""
    return _current


class Shapes(TorchDispatchMode):
    """Within the block, tensors of floats are made without memory; one block at a time.

    Attributes:
        device: where the tensors say that they are.
    """

    def __init__(self, device: torch.device = CPU):
        super().__init__()
        self.device = device
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._before: Shapes | None = None

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Nothing is compiled inside, and torch's compiler need not be loaded to be kept out."""
        return True

    def __enter__(self) -> "Shapes":
        global _current
        self._before, _current = _current, self
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        global _current
        _current = self._before
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on shapes, or on numbers where all that it takes has some."""
        kwargs = kwargs or {}
        # Asked more often than all else together.
        if func is DEVICE_OF:
            return self.device
        given = tensors_in((args, kwargs.values()))
        if given and all(_has_numbers(tensor) for tensor in given):
            return self._on_numbers(func, args, kwargs)
        if func in BY_INDEX:
            args = (args[0], _listed(args[1]), *args[2:])
        shapes = self._with_shapes(args)
        named = dict(zip(kwargs, self._with_shapes(kwargs.values()), strict=True))
        if named.get("device") is not None:
            named["device"] = self.device
        made = self._fake.dispatch(func, types, shapes, named)
        # Made of nothing but sizes: ids and masks have numbers.
        if not given and isinstance(made, Tensor) and made.dtype in REAL:
            return self._on_numbers(func, args, kwargs)
        self.note(func, shapes, named, made)
        return made

    def note(self, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        """Learn that an operation made something of what it was given."""

    def note_kernel(self, name: str, given: list[Tensor], made: list[Tensor]) -> None:
        """Learn that a kernel, written in C or Triton, was called."""

    def shape_of(self, tensor: Tensor) -> FakeTensor:
        """A tensor of the same shape and format, without memory, on the device of this mode."""
        if isinstance(tensor, FakeTensor):
            return tensor
        with _disable_current_modes():
            size, steps, dtype = tensor.size(), tensor.stride(), tensor.dtype
            bare = torch.empty_strided(size, steps, dtype=dtype, device=META)
        return FakeTensor(self._fake, bare, self.device)

    def _on_numbers(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        # Wherever it was asked for: on a GPU there would be as many bytes of them.
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": CPU}
        made = func(*args, **kwargs)
        self.note(func, (), {}, made)
        return made

    def _with_shapes(self, values: Iterable[Any]) -> tuple[Any, ...]:
        """What an operation was given, all without numbers."""
        return tuple(
            self.shape_of(value)
            if isinstance(value, Tensor)
            else list(self._with_shapes(value))
            if isinstance(value, (list, tuple))
            else value
            for value in values
        )


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among what an operation takes or makes, lists of them included."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple, ValuesView)):
            found += tensors_in(value)
    return found


def _has_numbers(tensor: Tensor) -> bool:
    return not isinstance(tensor, FakeTensor) and not tensor.is_meta


def _listed(indices: Any) -> list[Any]:
    """Indices, each mask among them as the lists of the places where it is true."""
    listed: list[Any] = []
    for index in indices:
        chooses = isinstance(index, Tensor) and index.dtype == torch.bool
        listed += index.nonzero(as_tuple=True) if chooses else [index]
    return listed


@contextmanager
def without_numbers(model: nn.Module, shapes: Shapes) -> Iterator[None]:
    """Within the block a model has shapes for weights, whether it holds numbers or is on meta."""
    made: dict[int, Tensor] = {}

    def shape_of(tensor: Tensor) -> Tensor:
        """Tied weights stay tied."""
        if id(tensor) not in made:
            shape = shapes.shape_of(tensor.detach())
            is_weight = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(shape, tensor.requires_grad) if is_weight else shape
        return made[id(tensor)]

    # By module, of which each comes once, and not by name: T5's token table has three.
    tables = [t for module in model.modules() for t in (module._parameters, module._buffers)]
    held = [(table, n, t) for table in tables for n, t in table.items() if t is not None]
    try:
        for table, name, tensor in held:
            table[name] = shape_of(tensor)  # pyright: ignore
        # The default device may be another one where a model is planned.
        with torch.device(CPU):
            yield
    finally:
        for table, name, tensor in held:
            table[name] = tensor  # pyright: ignore

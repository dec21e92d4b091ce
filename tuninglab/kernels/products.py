"""Products in float32 on CPUs through oneDNN, for frozen linear layers, with LoRA or without.

torch gives such products to MKL, which runs code for AVX2 on CPUs that are not Intel's: 110 GFLOP/s
a core where oneDNN has 230 to 260 (AVX-512, 256 x 512 x 512). Which is faster here, `faster` tries.
"""

import functools
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

WORTH = 0.85  # of torch's time: below that, another rounding is worth it
PRODUCT = 2**27  # multiplications and additions of a product that is tried: about a millisecond
ROUNDS = 7
PLAIN = (Tensor, nn.Parameter, FakeTensor)  # not what FSDP and the like make of them


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X (M, K) times weight (N, K), which may lie transposed, plus bias (N,): (M, N).

    Raises:
        AttributeError, NotImplementedError, RuntimeError: this torch has no such product.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def has_onednn() -> bool:
    """Whether this torch has that product: other builds and devices may not."""
    try:
        multiply(torch.ones(2, 3), torch.ones(4, 3))
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


def takes_onednn(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether x (..., K) may go through `multiply` with a frozen weight and others beside it."""
    given = [x, weight, *(tensor for tensor in others if tensor is not None)]
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if weight.requires_grad or not x.numel():
        return False
    return all(type(t) in PLAIN and t.is_cpu and t.dtype == torch.float32 for t in given)


class FastLinear(nn.Linear):
    """A linear layer that multiplies through oneDNN while it is frozen, in float32 on the CPU.

    Else, and in compiled graphs, it is the nn.Linear that its state dict and name say.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        trains = self.bias is not None and self.bias.requires_grad
        if trains or not takes_onednn(input, self.weight, self.bias):
            return super().forward(input)
        return _Frozen.apply(input, self.weight, self.bias)

    def _get_name(self) -> str:
        return "Linear"


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """X (..., K) times weight (N, K), plus bias (N,): (..., N); x is not kept."""
        ctx.save_for_backward(weight)
        rows = x.reshape(-1, x.shape[-1])
        return multiply(rows, weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """From a gradient (..., N) that of x."""
        (weight,) = ctx.saved_tensors
        rows = grads[0].reshape(-1, len(weight)).contiguous()
        return multiply(rows, weight.t()).view(*grads[0].shape[:-1], -1), None, None


class FrozenWithLora(torch.autograd.Function):
    """A frozen layer and the LoRA beside it: what is added is added in place, in both directions.

    `apply` takes x (..., K), weight (N, K), bias (N,) or None, A (R, K), B (N, R), LoRA's factor c.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, c: float
    ) -> Tensor:
        """X weight^T + bias + c (x A^T) B^T: (..., N)."""
        rows = x.reshape(-1, x.shape[-1])  # (M, K)
        y, h = multiply(rows, weight, bias), multiply(rows, a)
        y.addmm_(h, b.t(), alpha=c)
        ctx.save_for_backward(rows, weight, h, a, b)
        ctx.c, ctx.shape = c, x.shape
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """From a gradient (..., N) those of x, A and B."""
        rows, weight, h, a, b = ctx.saved_tensors
        grad = grads[0].reshape(-1, len(weight)).contiguous()  # (M, N)
        gb = multiply(grad, b.t()).mul_(ctx.c)  # (M, R)
        da, db, dx = gb.t() @ rows, (grad.t() @ h).mul_(ctx.c), None
        if ctx.needs_input_grad[0]:
            dx = multiply(grad, weight.t()).addmm_(gb, a).view(ctx.shape)
        return dx, None, None, da, db, None


def faster(shapes: Iterable[tuple[int, int]]) -> tuple[bool, str]:
    """Whether oneDNN is faster for weights of these shapes (N, K) here, and what was found.

    Both ways in turns, the lowest of seven times each, some tens of milliseconds in all. Once a
    process: what it multiplies twice shall be rounded alike, whatever else the machine does.
    """
    threads = torch.get_num_threads()
    mine, theirs = map(sum, zip(*(_times(n, k, threads) for n, k in shapes), strict=True))
    share = mine / theirs
    return share < WORTH, f"tried: oneDNN takes {share:.2f} of the time of torch's own here"


@functools.cache
@torch.no_grad()
def _times(n: int, k: int, threads: int) -> tuple[float, float]:
    """Seconds of a product with a weight (N, K): through oneDNN, and torch's own."""
    x, weight = torch.ones(min(256, max(16, PRODUCT // (2 * n * k))), k), torch.ones(n, k)
    times: dict[Any, list[float]] = {multiply: [], F.linear: []}
    for round_number in range(ROUNDS + 1):
        for function, found in times.items():
            began = time.perf_counter()
            function(x, weight)
            # The first makes threads and code.
            if round_number:
                found.append(time.perf_counter() - began)
    return min(times[multiply]), min(times[F.linear])

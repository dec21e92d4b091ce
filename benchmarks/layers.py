"""One frozen linear layer with LoRA, forward and backward, in six forms, over shapes and tokens.

    python benchmarks/layers.py --rounds 9

All forms of a shape run in turns in one process. A round of a form is as many calls as fill a
fiftieth of a second. Errors are relative to the float32 layer. Weights and data are random. Writes
benchmarks/results/int8_layers.json.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "int8_layers.json"
sys.path.insert(0, str(ROOT))

from tuninglab.comparison.machine import describe_machine, load_average, now  # noqa: E402
from tuninglab.comparison.memory import MIB, saved_for_backward  # noqa: E402
from tuninglab.comparison.timing import ratio_of  # noqa: E402
from tuninglab.console import say  # noqa: E402
from tuninglab.int8.linear import Int8Linear  # noqa: E402
from tuninglab.int8.rows import quantise_rows, scale_rows  # noqa: E402
from tuninglab.run_folder import git_commit, versions  # noqa: E402

# Rows (out, in) of the weight: flan-t5-small's attention and feed-forward, LLaMA-7B's.
SHAPES = ((512, 512), (2048, 512), (4096, 4096), (11008, 4096))
TOKENS = (64, 512, 2048)
RANK = 16
PLAIN = "bf16"
ROUND_S = 0.02

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


class _OwnBackward(torch.autograd.Function):
    """The layer with a backward written by hand: the best that float weights can do.

    `weight` gives the float weight (N, K) when it is called, forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Callable[[], Tensor], a: Tensor, b: Tensor) -> Tensor:
        h = x @ a.to(x.dtype).t()
        y = x @ weight().t()
        y.addmm_(h, b.to(x.dtype).t())
        ctx.save_for_backward(x, h, a, b)
        ctx.weight = weight
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, h, a, b = ctx.saved_tensors
        grad = grads[0]
        gb = grad @ b.to(x.dtype)
        dx = grad @ ctx.weight()
        dx.addmm_(gb, a.to(x.dtype))
        return dx, None, (gb.t() @ x).to(a.dtype), (grad.t() @ h).to(b.dtype)


def plain(linear: nn.Module) -> Forward:
    """A layer with LoRA beside it, differentiated by autograd."""

    def forward(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return linear(x) + F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))

    return forward


def bitsandbytes_layer(weight: Tensor) -> nn.Module | None:
    """Its 8-bit layer as transformers makes it; None where it is not installed."""
    try:
        from bitsandbytes.nn.modules import Int8Params, Linear8bitLt
    except ImportError:
        return None
    out, width = weight.shape
    layer = Linear8bitLt(width, out, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = Int8Params(weight.clone(), requires_grad=False)
    return layer.to(weight.device)


@dataclass
class Form:
    """A form of the layer: how it is called, in which format, and the bytes of its weight."""

    forward: Forward
    dtype: torch.dtype
    weight_bytes: int
    known: set[int] = field(default_factory=set)
    times_s: list[float] = field(default_factory=list)


def forms_of(weight: Tensor) -> dict[str, Form]:
    """All forms of a layer of this float32 weight (N, K)."""
    half = weight.bfloat16()
    q, scale = quantise_rows(weight)
    ours = Int8Linear.of(_linear(weight))
    theirs = bitsandbytes_layer(weight)

    def dequantised(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return _OwnBackward.apply(x, lambda: scale_rows(q, scale, None, x.dtype), a, b)

    forms = {
        "fp32": Form(plain(_linear(weight)), torch.float32, _bytes(weight)),
        PLAIN: Form(plain(_linear(half)), torch.bfloat16, _bytes(half)),
        "bf16, own backward": Form(
            lambda x, a, b: _OwnBackward.apply(x, lambda: half, a, b), torch.bfloat16, _bytes(half)
        ),
        "dequantise at each use": Form(dequantised, torch.bfloat16, _bytes(q, scale)),
        "int8": Form(ours.multiply, torch.bfloat16, _bytes(ours.weight, ours.weight_scale)),
    }
    tensors = [weight, half, q, scale, ours.weight, ours.weight_scale]
    if theirs is not None:
        state: Any = theirs.weight
        tensors += [state, state.SCB]
        forms["bitsandbytes int8"] = Form(
            plain(theirs), torch.bfloat16, _bytes(state.data, state.SCB)
        )
    for form in forms.values():
        form.known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return forms


@dataclass
class Inputs:
    """What a call takes, in the format of its form: x (M, K), LoRA's A and B, and y's gradient."""

    x: Tensor
    a: Tensor
    b: Tensor
    grad: Tensor

    @classmethod
    def draw(
        cls, out: int, width: int, tokens: int, dtype: torch.dtype, device: torch.device
    ) -> "Inputs":
        """The same numbers for every form, rounded to its format."""
        random = torch.Generator().manual_seed(1)
        x = torch.randn(tokens, width, generator=random).to(device, dtype)
        a = (torch.randn(RANK, width, generator=random) * width**-0.5).to(device)
        b = (torch.randn(out, RANK, generator=random) * 0.02).to(device)
        grad = torch.randn(tokens, out, generator=random) * out**-0.5
        return cls(
            x.requires_grad_(), a.requires_grad_(), b.requires_grad_(), grad.to(device, dtype)
        )

    def call(self, form: Form) -> Tensor:
        """Forward and backward; returns y."""
        self.x.grad = self.a.grad = self.b.grad = None
        y = form.forward(self.x, self.a, self.b)
        y.backward(self.grad)
        return y.detach()


def measure(
    out: int, width: int, tokens: int, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """Rows of one shape and number of tokens."""
    torch.manual_seed(0)
    forms = forms_of((torch.randn(out, width) * width**-0.5).to(device))
    drawn = (out, width, tokens)
    inputs = {name: Inputs.draw(*drawn, form.dtype, device) for name, form in forms.items()}
    found = {name: accuracy(form, inputs[name]) for name, form in forms.items()}
    calls = max(1, round(ROUND_S / timed(forms[PLAIN], inputs[PLAIN], 1)))
    for turn in range(rounds):
        for name in list(forms)[:: -1 if turn % 2 else 1]:
            forms[name].times_s.append(timed(forms[name], inputs[name], calls) / calls)
    rows = []
    for name, form in forms.items():
        median, lowest = ratio_of(form.times_s, forms[PLAIN].times_s)
        errors = zip(("y", "dx", "da", "db"), found[name][0], found["fp32"][0], strict=True)
        rows.append(
            {
                "out": out,
                "in": width,
                "tokens": tokens,
                "form": name,
                "ms": round(1000 * statistics.median(form.times_s), 3),
                "time_ratio": round(median, 3),
                "time_ratio_min": round(lowest, 3),
                "weight_mib": round(form.weight_bytes / MIB, 3),
                "saved_mib": round(found[name][1] / MIB, 3),
                "errors": {what: round(distance(one, two), 5) for what, one, two in errors},
            }
        )
    return rows


def accuracy(form: Form, inputs: Inputs) -> tuple[list[Tensor], int]:
    """y, dx, dA, dB of a call, and the bytes it keeps for its backward pass besides LoRA's."""
    known = form.known | {t.untyped_storage().data_ptr() for t in (inputs.a, inputs.b)}
    with saved_for_backward(known) as saved:
        form.forward(inputs.x, inputs.a, inputs.b)
    y = inputs.call(form)
    gradients = [tensor.grad for tensor in (inputs.x, inputs.a, inputs.b)]
    kept = sum(tensor.bytes for tensor in saved.values())
    return [y, *(grad.clone() for grad in gradients if grad is not None)], kept


def timed(form: Form, inputs: Inputs, calls: int) -> float:
    """Seconds of some calls."""
    began = time.perf_counter()
    for _ in range(calls):
        inputs.call(form)
    if inputs.x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def distance(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over that of the expected."""
    expected = expected.float()
    return float((found.float() - expected).norm() / expected.norm())


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main() -> None:
    """Measure all shapes and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--largest", type=int, default=max(max(shape) for shape in SHAPES))
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    machine: dict[str, Any] = {**describe_machine(options.device), "load_before": load_average()}
    rows = []
    for out, width in (shape for shape in SHAPES if max(shape) <= options.largest):
        for tokens in TOKENS:
            rows += measure(out, width, tokens, options.rounds, options.device)
            ratios = {row["form"]: row["time_ratio"] for row in rows if row["tokens"] == tokens}
            say(f"{out} x {width}, {tokens} tokens: {ratios}")
    machine["load_after"] = load_average()
    result = {
        "command": "python benchmarks/layers.py " + " ".join(sys.argv[1:]),
        "work": f"forward, dx, dA, dB of a frozen random weight with LoRA of rank {RANK}",
        "ratios_to": PLAIN,
        "rounds": options.rounds,
        "rows": rows,
        "machine": machine,
        "versions": versions(),
        "git_commit": git_commit(),
        "date": now(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

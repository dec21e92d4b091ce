"""How fast this machine computes: a few products and one pass over memory, measured once, kept.

About a second the first time; after that read from the user's cache folder. Other processors,
numbers of threads and versions of torch are measured anew.
"""

import hashlib
import math
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor

from tuninglab.disk import write_whole
from tuninglab.errors import UserError, WorkError
from tuninglab.inspection.cost import Cost
from tuninglab.int8.rows import product, quantise_rows
from tuninglab.int8.ways import way_of
from tuninglab.kernels.cache import cache_folder
from tuninglab.kernels.products import has_onednn, multiply
from tuninglab.models.parts import DTYPES
from tuninglab.progress import working
from tuninglab.training.hardware import cpu_name
from tuninglab.untrusted import MIB, read_json

# One higher where the same machine comes to other figures.
FORM = 2
# A product of a step: so many tokens, a layer of so many numbers in and out.
TOKENS, WIDE = 512, 1024
PASSED = 2**22  # numbers that a pass reads: more than caches hold
# Rounds of a measurement: as many as the time allows.
ROUNDS_S, FEWEST, MOST = 0.1, 5, 40


@dataclass(frozen=True)
class Speed:
    """What a machine does in a second.

    Args:
        products: operations of products a second, two for each multiply-add, by number format.
        passes: bytes a second that operations between the products read and write, by the format
            that they work in, fp32 or bf16.
        stream: bytes a second of a pass that only reads and writes.
        call_s: of an operation on next to nothing, with its share of the backward pass.
        spread: how far single measurements lay from these, as a share: half the width of the
            middle half.
        waits: whether whoever calls waits for the operation; a GPU works while others are called.
    """

    products: dict[str, float]
    passes: dict[str, float]
    stream: float
    call_s: float
    spread: float
    waits: bool = True

    def seconds(self, cost: Cost, precision: str) -> float:
        """Of a step or pass that costs so much.

        Within 30 % of what was measured at widths of 128 and 768 (benchmarks/results/plan.json).
        """
        known = self.products
        # A format that was not measured takes the time of the slowest.
        count = cost.operations.items()
        products_s = sum(n / known.get(name, min(known.values())) for name, n in count)
        between = cost.moved - cost.streamed
        passes_s = between / self.passes["fp32" if precision == "fp32" else "bf16"]
        works_s = products_s + passes_s + cost.streamed / self.stream
        calls_s = cost.calls * self.call_s
        return works_s + calls_s if self.waits else max(works_s, calls_s)


def speed_of(device: torch.device) -> Speed:
    """How fast a device of this machine is, from the cache or measured now and kept."""
    folder, _ = cache_folder()
    place = None if folder is None else folder / f"speed-{_key(device)}.json"
    if place is not None and (known := _kept(place)) is not None:
        return known
    with working("measuring how fast this machine multiplies, once"):
        speed = measure(device)
    if place is not None:
        # What cannot be kept is measured again.
        with suppress(WorkError):
            write_whole(place, dumps(asdict(speed)))
    return speed


def measure(device: torch.device) -> Speed:
    """Measure the speed of a device; about a second."""
    call_s = _call_s(device)
    with torch.no_grad():
        products, spreads = {}, []
        for name, ways in _products(device).items():
            best = min((_middle(_times(way, device)) for way in ways), key=lambda found: found[0])
            products[name] = 2 * TOKENS * WIDE * WIDE / best[0]
            spreads.append(best[1])
        passes = {name: _pass_speed(DTYPES[name], device) for name in ("fp32", "bf16")}
        x = torch.ones(PASSED, device=device)
        y = torch.empty_like(x)
        stream_s, spread = _middle(_times(lambda: torch.add(x, x, out=y), device))
    # x is read, and y written.
    stream = 2 * x.numel() * x.itemsize / stream_s
    waits = device.type == "cpu"
    return Speed(products, passes, stream, call_s, max(spread, *spreads), waits)


def _pass_speed(dtype: torch.dtype, device: torch.device) -> float:
    """Bytes a second of what stands between products: rows normed by a function, and laid anew.

    Their results are new memory, as they are in a step; on a CPU that is half of their time.
    """
    x = torch.ones(PASSED // 256, 256, dtype=dtype, device=device)
    ways: list[Callable[[], Any]] = [lambda: x.softmax(-1), lambda: x.t().contiguous()]
    seconds = sum(_middle(_times(way, device))[0] for way in ways)
    return len(ways) * 2 * x.numel() * x.itemsize / seconds


def _call_s(device: torch.device) -> float:
    """Seconds of an operation on next to nothing, forward and backward."""
    layer = torch.nn.Linear(8, 8, device=device)
    x, layers = torch.ones(1, 8, device=device, requires_grad=True), 20

    def work() -> None:
        y = x
        for _ in range(layers):
            y = layer(y) + 1
        y.sum().backward()

    # Of a layer: a product, its bias and a sum, and backward the gradients of x, weight and bias.
    return _middle(_times(work, device))[0] / (6 * layers)


def _products(device: torch.device) -> dict[str, list[Callable[[], Any]]]:
    """What is multiplied in each number format that the device computes in, and how."""
    x, w = torch.randn(TOKENS, WIDE, device=device), torch.randn(WIDE, WIDE, device=device)
    ways: dict[str, list[Callable[[], Any]]] = {"fp32": [lambda: x @ w.t()]}
    if device.type == "cpu" and has_onednn():
        ways["fp32"].append(lambda: multiply(x, w))
    for name in ("bf16", "fp16") if device.type == "cuda" else ("bf16",):
        half = [tensor.to(DTYPES[name]) for tensor in (x, w)]
        ways[name] = [lambda half=half: half[0] @ half[1].t()]
    if way_of(device.type)[0] == "int8":
        # As a layer does it: rows to int8, the product, and back.
        weight, scale = quantise_rows(w)
        rows = x.to(torch.bfloat16)
        ways["int8"] = [lambda: _int8(rows, weight, scale)]
    return ways


def _int8(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return product(*quantise_rows(rows), weight.t(), scale, rows.dtype)


def _times(work: Callable[[], Any], device: torch.device) -> list[float]:
    """Seconds of each of some rounds; the first, which makes code and memory, is left out."""
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) <= FEWEST or (len(times) <= MOST and time.perf_counter() - begun < ROUNDS_S):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return times[1:]


def _middle(times: list[float]) -> tuple[float, float]:
    """The time of a quiet moment, and how far the middle half of all lies apart, as a share.

    Other work only ever adds time: of the quarters, the lowest tells most of the machine.
    """
    low, middle, high = quantiles(times, n=4)
    return low, (high - low) / 2 / middle


def _key(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    said = (FORM, name, torch.get_num_threads(), os.cpu_count(), torch.__version__)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def _kept(place: Path) -> Speed | None:
    """What was measured before; None if there is none, or it is damaged or another user's."""
    try:
        found = place.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return None
        values = read_json(place, MIB, "speed of this machine")
        speed = Speed(**values)
        numbers = [*speed.products.values(), *speed.passes.values(), speed.stream, speed.call_s]
        fine = all(math.isfinite(n) and n > 0 for n in numbers) and 0 <= speed.spread < math.inf
    # As many ways to be damaged as a file that is JSON has.
    except (OSError, UserError, TypeError, AttributeError):
        return None
    whole = "fp32" in speed.products and {"fp32", "bf16"} <= speed.passes.keys()
    return speed if fine and whole else None

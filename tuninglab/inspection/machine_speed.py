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
from tuninglab.int8.rows import product, quantise_rows
from tuninglab.int8.ways import way_of
from tuninglab.kernels.cache import cache_folder
from tuninglab.kernels.products import has_onednn, multiply
from tuninglab.models.parts import DTYPES
from tuninglab.progress import working
from tuninglab.training.hardware import cpu_name
from tuninglab.untrusted import MIB, read_json

# One higher where the same machine comes to other figures.
FORM = 1
# A product of a step: so many tokens, a layer of so many numbers in and out.
TOKENS, WIDE = 512, 1024
PASS_BYTES = 64 * MIB
# Rounds of a measurement: as many as the time allows.
ROUNDS_S, FEWEST, MOST = 0.12, 5, 40


@dataclass(frozen=True)
class Speed:
    """What a machine does in a second.

    Args:
        products: operations of products a second, two for each multiply-add, by number format.
        bytes_per_s: read and written by operations that hardly compute.
        call_s: of an operation on next to nothing, with its share of the backward pass.
        spread: how far single measurements lay from these, as a share: half the width of the
            middle half.
    """

    products: dict[str, float]
    bytes_per_s: float
    call_s: float
    spread: float

    def seconds(self, operations: dict[str, float], moved: float, calls: float = 0) -> float:
        """Of a step that computes, moves and calls so much."""
        known = self.products
        # A format that was not measured takes the time of the slowest.
        products = sum(n / known.get(name, min(known.values())) for name, n in operations.items())
        return products + moved / self.bytes_per_s + calls * self.call_s


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


@torch.no_grad()
def measure(device: torch.device) -> Speed:
    """Measure the speed of a device; about a second."""
    found: dict[str, tuple[float, float]] = {}
    work = 2 * TOKENS * WIDE * WIDE
    for name, ways in _products(device).items():
        best = min((_middle(_times(way, device)) for way in ways), key=lambda found: found[0])
        found[name] = work / best[0], best[1]
    size = PASS_BYTES // 4
    x, y = torch.ones(size, device=device), torch.empty(size, device=device)
    pass_s, pass_spread = _middle(_times(lambda: torch.add(x, x, out=y), device))
    small = torch.ones(1, device=device)
    calls_s, _ = _middle(_times(lambda: [small + small for _ in range(100)], device))
    products = {name: speed for name, (speed, _) in found.items()}
    spread = max(pass_spread, *(spread for _, spread in found.values()))
    # x is read, and y written.
    return Speed(products, 2 * PASS_BYTES / pass_s, calls_s / 100, spread)


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
        numbers = [*speed.products.values(), speed.bytes_per_s, speed.call_s]
        fine = all(math.isfinite(n) and n > 0 for n in numbers) and 0 <= speed.spread < math.inf
    # As many ways to be damaged as a file that is JSON has.
    except (OSError, UserError, TypeError, AttributeError):
        return None
    return speed if fine and "fp32" in speed.products else None

"""What a measurement ran on: processor, its int8 and 16-bit arithmetic, load, versions."""

import os
import platform
from datetime import UTC, datetime
from typing import Any

import torch

from tuninglab.int8.ways import INT8_CAPABILITIES
from tuninglab.training.hardware import BF16_CAPABILITIES, cpu_name

# Above this share of the cores, other work takes time that no ratio gives back.
BUSY_LOAD_A_CORE = 0.5


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, what it computes natively, and the device of the measurement."""
    found = getattr(torch.cpu, "get_capabilities", dict)()
    capabilities = sorted(name for name, value in found.items() if value is True)
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "int8": [name for name in capabilities if name in INT8_CAPABILITIES],
        "bf16": [name for name in capabilities if name in BF16_CAPABILITIES],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "platform": platform.platform(),
    }


def load_average() -> float | None:
    """Running processes over the last minute; None on a system that does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def is_busy(load: float | None) -> bool:
    """Whether so much else runs that times mean little."""
    return load is not None and load > BUSY_LOAD_A_CORE * (os.cpu_count() or 1)


def now() -> str:
    """Date and time of day in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")

"""Compiles the C kernels for this CPU on first use, keeps the result, and calls them.

C won over its rivals: on 2 cores with AVX-512 a pass over 2048 x 512 bfloat16 numbers takes
0.08 ms and building a second, where torch.compile took 43 to 52 s to warm up on a busy machine.
Without a compiler everything runs on torch alone.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCES = Path(__file__).parent / "c"
# Of -ffast-math only what neither loses NaN and infinity nor changes the order of sums.
FLAGS = (
    *("-O3", "-march=native", "-std=gnu11", "-fPIC", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
)
FORMATS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had."""
    return _loaded()[0]


def kernels_here() -> tuple[str, str]:
    """What makes the passes over rows on this CPU, and why."""
    found, reason = _loaded()
    return "C, compiled for this CPU" if found else "torch, in several steps: slower", reason


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("TUNINGLAB_NATIVE") == "0":
        return None, "TUNINGLAB_NATIVE=0"
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None, "no C compiler (cc, gcc) was found; with one it would be faster"
    try:
        return ctypes.CDLL(str(_built(compiler))), f"built once by {compiler} and kept"
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        return None, f"{compiler} failed: {said.splitlines()[0]}"


def has_kernels(*tensors: Tensor | None) -> bool:
    """Whether the kernels can take these tensors: on the CPU, in a known format, kernels built."""
    given = [tensor for tensor in tensors if tensor is not None]
    fits = all(t.is_cpu and (t.dtype in FORMATS or not t.is_floating_point()) for t in given)
    # A compiled graph fuses torch's own operations; a call out of it would split it.
    return fits and not torch.compiler.is_compiling() and library() is not None


def call(name: str, dtype: torch.dtype, *arguments: Tensor | int | float | None) -> None:
    """Run a kernel for numbers of `dtype`; tensors are passed by address, None as a null pointer.

    The caller owes contiguous tensors of the formats that the kernel's source states.
    """
    kernel = getattr(library(), f"{name}_{FORMATS[dtype]}")
    kernel(*[_argument(value) for value in arguments])


def _argument(value: Tensor | int | float | None) -> Any:
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_void_p(None if value is None else value.data_ptr())


def _built(compiler: str) -> Path:
    """The shared library for these sources, this compiler and this CPU, built if it is not there.

    Raises:
        OSError, subprocess.SubprocessError: the compiler or the cache folder failed.
    """
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix in (".c", ".h"))
    runtime = _openmp_of_torch()
    told = [compiler, *FLAGS, str(runtime), _cpu(), *(path.read_text("utf-8") for path in sources)]
    name = f"kernels-{hashlib.sha256('|'.join(told).encode()).hexdigest()[:16]}.so"
    target = _cache_folder() / name
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        code, made = Path(folder) / "kernels.o", Path(folder) / name
        _run([compiler, *FLAGS, "-c", str(SOURCES / "kernels.c"), "-o", str(code)])
        # With its own runtime beside torch's, two pools of threads would fight for the cores.
        openmp = [str(runtime)] if runtime else ["-fopenmp"]
        _run([compiler, "-shared", str(code), *openmp, "-lm", "-o", str(made)])
        # Renamed when whole: processes of torchrun build at the same time.
        made.replace(target)
    return target


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(home) / "tuninglab"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    # A new folder of our own: one of a known name could be somebody else's, and is run.
    return Path(tempfile.mkdtemp(prefix="tuninglab-"))


def _openmp_of_torch() -> Path | None:
    """The OpenMP runtime that torch has loaded, where the system tells."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    found = {line.split()[-1] for line in lines if "libgomp" in line or "libomp" in line}
    return Path(min(found)) if found else None


def _cpu() -> str:
    """What -march=native depends on, so that a shared home does not mix up machines."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    known = sorted(name for name, value in capabilities.items() if value is True)
    return f"{platform.machine()} {capabilities.get('cpu_name')} {' '.join(known)}"

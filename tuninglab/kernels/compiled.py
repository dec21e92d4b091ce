"""Compiles the C kernels for this CPU on first use, and keeps the result.

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
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

from tuninglab.kernels.cache import cache_folder, find_library, keep_library, workshop
from tuninglab.progress import working

SOURCES = Path(__file__).parent / "c"
# Of -ffast-math only what neither loses NaN and infinity nor changes the order of sums.
FLAGS = (
    *("-O3", "-march=native", "-std=gnu11", "-fPIC", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
)

# A second usually, four on a busy machine.
LONGEST_S = 40.0


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had."""
    return _loaded()[0]


def kernels_here() -> tuple[str, str]:
    """What makes the passes over rows on this CPU, and why."""
    found, reason = _loaded()
    return "C, compiled for this CPU" if found else "torch, in several steps: slower", reason


def c_compiler() -> str | None:
    """The C compiler of this machine, which torch needs as well for what it compiles for GPUs."""
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("TUNINGLAB_NATIVE") == "0":
        return None, "TUNINGLAB_NATIVE=0"
    compiler = c_compiler()
    if compiler is None:
        return None, "no C compiler (cc, gcc) was found; with one it would be faster"
    try:
        folder, problem = cache_folder()
        if folder:
            path = _kept(compiler, folder)
            return ctypes.CDLL(str(path)), f"built once by {compiler} and kept"
        # A new folder of our own: one of a known name could be somebody else's, and is run. What is
        # loaded stays when its file goes, so nothing is left behind.
        with workshop(Path(tempfile.gettempdir())) as own:
            built = ctypes.CDLL(str(_built(compiler, own)))
        return built, f"built by {compiler} for this process: {problem}"
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip() or type(error).__name__
        return None, f"{compiler} failed: {said.splitlines()[0]}"


def _kept(compiler: str, folder: Path) -> Path:
    """The shared library for these sources, this compiler and this CPU, built if it is not there.

    Raises:
        OSError, subprocess.SubprocessError: the compiler or the cache folder failed.
    """
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix in (".c", ".h"))
    told = [compiler, *FLAGS, str(_openmp_of_torch()), _cpu()]
    told += [path.read_text("utf-8") for path in sources]
    key = hashlib.sha256("|".join(told).encode()).hexdigest()[:16]
    if found := find_library(folder, key):
        return found
    with workshop(folder) as own:
        return keep_library(_built(compiler, own), folder, key)


def _built(compiler: str, folder: Path) -> Path:
    """The shared library, newly built in a folder.

    Raises:
        OSError, subprocess.SubprocessError: the compiler or the folder failed.
    """
    code, made, runtime = folder / "kernels.o", folder / "kernels.so", _openmp_of_torch()
    # With its own runtime beside torch's, two pools of threads would fight for the cores.
    openmp = [str(runtime)] if runtime else ["-fopenmp"]
    ends = time.monotonic() + LONGEST_S
    with working("compiling the kernels for this CPU"):
        for command in (
            [compiler, *FLAGS, "-c", str(SOURCES / "kernels.c"), "-o", str(code)],
            [compiler, "-shared", str(code), *openmp, "-lm", "-o", str(made)],
        ):
            _run(command, folder, ends - time.monotonic())
    return made


def _run(command: list[str], folder: Path, seconds: float) -> None:
    """Run a compiler, which may leave its own files in a folder, and no process behind.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be started, fails, or takes longer.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | {"TMPDIR": str(folder)},
        # A group of its own: cc starts others, which would go on when it is killed.
        start_new_session=True,
    )
    with process:
        try:
            _, said = process.communicate(timeout=max(seconds, 0.0))
        except BaseException as error:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"it did not end within {LONGEST_S:.0f} s") from None
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=said)


class _Symbol(ctypes.Structure):
    """What dladdr tells of an address (Dl_info in dlfcn.h)."""

    _fields_ = [("file", ctypes.c_char_p), *((name, ctypes.c_void_p) for name in "abc")]


def _openmp_of_torch() -> Path | None:
    """The OpenMP runtime that libtorch is linked with, whatever else the process has loaded.

    Looked up through libtorch, because others bring one of their own: scikit-learn's was found
    first in /proc/self/maps wherever it had been imported.
    """
    found = _Symbol()
    for library in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        function = getattr(ctypes.CDLL(str(library)), "omp_get_max_threads", None)
        if function and ctypes.CDLL(None).dladdr(function, ctypes.byref(found)):
            return Path(os.fsdecode(found.file))
    return None


def _cpu() -> str:
    """What -march=native depends on, so that a shared home does not mix up machines."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    known = sorted(name for name, value in capabilities.items() if value is True)
    return f"{platform.machine()} {capabilities.get('cpu_name')} {' '.join(known)}"

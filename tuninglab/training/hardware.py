"""Device and precision of a run, chosen with reasons, and the accelerator that carries them out."""

import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tuninglab.config.training import Precision
from tuninglab.console import Choices, answer_main_process
from tuninglab.errors import UserError
from tuninglab.models.parts import DTYPES as DTYPES  # by name, as `precision_of` gives it
from tuninglab.threads import CGROUP, allowed_cpus, tell_other_work
from tuninglab.training.launch import check_launcher
from tuninglab.training.meeting import meet
from tuninglab.untrusted import shown

# What torch.cpu.get_capabilities calls bf16 arithmetic, on x86 and on Arm.
BF16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "arm_bf16", "sve_bf16")
PROCESS = Path("/proc/self")
MEMORY = Path("/proc/meminfo")
CPUS = Path("/proc/cpuinfo")

# What torchrun says of processes: how many and which.
PROCESS_NUMBERS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}

# How many threads there were before a run asked for a number of its own: the next run of the same
# process may not ask.
_before: int | None = None


def make_accelerator(
    precision: str, choices: Choices, threads: int | None = None, why: str = "asked for"
) -> Accelerator:
    """Choose device, threads and precision; set up autocast, scaler and process group for them.

    Raises:
        UserError: the precision asked for does not work on this device, or what the environment
            says of processes is none.
    """
    check_processes()
    check_launcher()
    # Asked for its device and processes first: the precision depends on them.
    meet()
    accelerator = accelerator_in("fp32")
    device, processes = accelerator.device, accelerator.num_processes
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != started:
        raise UserError(
            f"torchrun started {started} processes, but on {device.type} they cannot train "
            "together. Start one: --nproc_per_node=1."
        )
    # From here on there is one answer to who speaks and writes.
    answer_main_process(accelerator.is_main_process)
    choices.add("device", _device_name(device), f"{processes} process{'es' * (processes > 1)}")
    choose_threads(threads, device, choices)
    chosen = choose_precision(precision, device.type, choices, why)
    return accelerator if chosen == "fp32" else accelerator_in(chosen)


def check_processes(environment: Mapping[str, str] = os.environ) -> None:
    """Pass if the environment says of processes what torchrun says, or nothing.

    Raises:
        UserError: naming the variable.
    """
    for name in PROCESS_NUMBERS & environment.keys():
        if not re.fullmatch(r"[0-9]{1,6}", environment[name]):
            raise UserError(
                f"{name} in the environment is {shown(environment[name])}; expected a number of "
                f"processes, as torchrun sets it. Unset it: unset {name}"
            )
    count = int(environment.get("WORLD_SIZE", "1"))
    rank = int(environment.get("RANK", "0"))
    # Job templates set RANK for one process too.
    if count < 1 or rank >= count > 1:
        raise UserError(
            f"RANK in the environment is {rank} and WORLD_SIZE {count}; expected as many processes "
            "and a smaller RANK, as torchrun sets them. Unset them: unset RANK WORLD_SIZE"
        )


def accelerator_in(precision: str) -> Accelerator:
    """An accelerator of fp32, bf16 or fp16, whatever others of this process compute in."""
    # accelerate keeps one precision for the life of a process and refuses another; two runs from
    # one Python session, and a comparison of precisions, are ordinary use. With a state of its own
    # an accelerator keeps its precision when the next one is made.
    AcceleratorState._shared_state = {}
    # Without this, accelerate leaves the processes of torchrun alone, each training by itself.
    cpu = not torch.accelerator.is_available()
    return Accelerator(cpu=cpu, mixed_precision="no" if precision == "fp32" else precision)


def best_device(choices: Choices, threads: int | None = None) -> torch.device:
    """Where a model answers fastest on this machine, with how many threads; says why."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    kind = "the GPU that torch can use" if device.type != "cpu" else "torch can use no GPU here"
    choices.add("device", _device_name(device), kind)
    choose_threads(threads, device, choices)
    return device


def choose_threads(asked: int | None, device: torch.device, choices: Choices) -> None:
    """Set how many threads compute, and say how many and why, where a CPU does the work."""
    use_threads(asked)
    allowed = allowed_cpus()
    if asked is not None:
        why = "--threads"
    elif "OMP_NUM_THREADS" in os.environ:
        why = "OMP_NUM_THREADS in the environment"
    elif allowed is not None and allowed < torch.get_num_threads():
        torch.set_num_threads(allowed)
        why = "as many CPUs as this container may use"
    else:
        why = "torch's default, one for each core"
    if device.type != "cpu":
        return
    choices.add("threads", str(torch.get_num_threads()), why)
    if asked is None and torch.get_num_threads() > 1:
        tell_other_work()


def use_threads(asked: int | None) -> None:
    """Compute with so many threads from now on; None: as before any run asked for a number."""
    global _before
    usual = torch.get_num_threads() if _before is None else _before
    torch.set_num_threads(usual if asked is None else asked)
    _before = None if asked is None else usual


def choose_precision(asked: str, device_type: str, choices: Choices, why: str = "asked for") -> str:
    """Resolve `auto` into fp32, bf16 or fp16 for a device, with the reason; else `why` it is so.

    Raises:
        UserError: fp16 on a CPU.
    """
    if device_type == "cpu" and asked == "fp16":
        raise UserError(
            "--precision fp16 does not work on a CPU: it has no fp16 arithmetic, every operation "
            "is emulated and takes many times as long. Use --precision fp32, bf16 or auto."
        )
    if device_type == "mps" and asked in ("bf16", "fp16"):
        raise UserError(
            f"--precision {asked} has not been tried on Apple GPUs, so it is not offered there. "
            "Use --precision fp32 or auto."
        )
    native = _has_bf16(device_type)
    if asked != "auto":
        slow = asked == "bf16" and not native
        # Measured, 512x256x256 matmul on an AVX2 CPU: 64 times the time of fp32.
        note = f"{why}, though this device must emulate it: slow" if slow else why
        return choices.add("precision", asked, note)
    if native:
        return choices.add("precision", "bf16", f"this {device_type} computes in bf16")
    if device_type == "cuda":
        return choices.add("precision", "fp16", "this GPU has no bf16 arithmetic")
    return choices.add("precision", "fp32", f"this {device_type} has no bf16 arithmetic we know of")


def precision_of(accelerator: Accelerator) -> Precision:
    """Name of the precision that an accelerator computes in: fp32, bf16 or fp16."""
    named: Any = accelerator.mixed_precision
    return "fp32" if named == "no" else named


def reset_peak_memory(device: torch.device) -> bool:
    """Let `peak_memory_mib` count from here on; returns whether the system can.

    So that it tells of training, and not of loading.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        # Makes what is resident now the highest so far (proc(5)).
        (PROCESS / "clear_refs").write_text("5")
    # macOS has no such file, some containers forbid it.
    except OSError:
        return False
    return True


def peak_memory_mib(device: torch.device) -> float:
    """Highest memory use in MiB since `reset_peak_memory`, with all that was held then.

    On a GPU that of torch's tensors; else the resident memory of the process, where the system
    cannot count anew (macOS) since its start.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = (PROCESS / "status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # In bytes on macOS, in KiB elsewhere (getrusage(2) of each).
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def held_memory_bytes(device: torch.device) -> int:
    """What this process holds: of a GPU's memory for tensors, else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    try:
        status = (PROCESS / "status").read_text(encoding="utf-8")
        return int(status.partition("VmRSS:")[2].split()[0]) * 2**10
    except (OSError, IndexError):
        # macOS tells the highest alone.
        return round(peak_memory_mib(device) * 2**20)


def free_memory_bytes(device: torch.device) -> int:
    """What this process may still take: of a GPU's memory, else of the machine's or container's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        text = MEMORY.read_text(encoding="utf-8")
        free = int(text.partition("MemAvailable:")[2].split()[0]) * 2**10
    except (OSError, IndexError):
        # macOS tells only how much there is.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        most, held = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
    # No limit is the word "max", and no container has no such file.
    except (OSError, ValueError):
        return free
    return max(0, min(free, most - held + _pages_of_files()))


def _pages_of_files() -> int:
    """Bytes of files that a container was charged for and that nobody uses: they give way."""
    try:
        text = (CGROUP / "memory.stat").read_text(encoding="utf-8")
        # By itself: "total_inactive_file" ends so, too.
        found = [line.split()[1] for line in text.splitlines() if line.startswith("inactive_file ")]
        return int(found[0])
    except (OSError, ValueError, IndexError):
        return 0


def cpu_name() -> str:
    """The model of the processor, as far as the system tells."""
    # platform.processor() is empty on Linux, or only the architecture.
    lines = CPUS.read_text(encoding="utf-8").splitlines() if CPUS.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True
        )
        named = [asked.stdout.strip()]
    return next(filter(None, named), platform.machine())


def _has_bf16(device_type: str) -> bool:
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Older torch does not tell; unknown counts as no, because emulation is so slow.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return device_type == "cpu" and any(capabilities.get(name) for name in BF16_CAPABILITIES)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)

"""For which machine a run is planned: its memory for each process, and how fast it is."""

import os
from dataclasses import dataclass

import torch

from tuninglab.config.planning import Planned
from tuninglab.errors import UserError
from tuninglab.inspection.machine_speed import Speed, speed_of
from tuninglab.training.hardware import cpu_name, free_memory_bytes, held_memory_bytes

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """A machine, there or not.

    Args:
        device: that computes: cpu or cuda.
        name: for people.
        processes: that train together.
        available: bytes of memory for each process; on a CPU all that it may hold, with its
            libraries.
        speed: None where it could not be measured.
        why: there is no speed.
    """

    device: str
    name: str
    processes: int
    available: int
    speed: Speed | None
    why: str = ""


def machine_here(device: torch.device, processes: int) -> Machine:
    """The machine that this process runs on, as a run of so many processes finds it.

    Args:
        device: that computes.
        processes: of the run.
    """
    free, held = free_memory_bytes(device), held_memory_bytes(device)
    available = free + held
    if device.type != "cuda":
        # Processes of this machine share its memory. Those that were started hold theirs already.
        started = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        available = free // started + held if started > 1 else available // processes
    return Machine(device.type, _name(device), processes, available, speed_of(device))


def planned_machine(asked: Planned, processes: int | None, memory_gib: float | None) -> Machine:
    """The machine that is asked for.

    Args:
        asked: its kind; auto: that of this machine.
        processes: None: as torchrun started.
        memory_gib: of each device; None: what is free here.

    Raises:
        UserError: a GPU is asked for that is not here, without its memory.
    """
    count = processes or int(os.environ.get("WORLD_SIZE", "1"))
    there = torch.cuda.is_available()
    kind = ("cuda" if there else "cpu") if asked == "auto" else asked
    if kind == "cuda" and not there:
        if memory_gib is None:
            raise UserError(
                "--device cuda: there is no GPU here to ask how much memory it has. Say it: "
                "--memory_gib 24, for example."
            )
        why = "the GPU is not here to be measured"
        return Machine("cuda", "a GPU", count, round(memory_gib * GIB), None, why)
    here = machine_here(torch.device(kind), count)
    if memory_gib is None:
        return here
    return Machine(here.device, here.name, count, round(memory_gib * GIB), here.speed, here.why)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{cpu_name()}, {threads} thread{'s' * (threads > 1)}"

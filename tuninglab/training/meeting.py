"""How the processes of torchrun meet: the group that accelerate goes on with."""

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from tuninglab.errors import UserError

# As long as torch waits by itself (torch.distributed.constants, gloo).
PATIENCE = timedelta(minutes=30)


def meet() -> None:
    """Let the processes of this run find each other; nothing if there is only one.

    Raises:
        UserError: what the environment says of processes is none.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    try:
        PartialState(cpu=not torch.accelerator.is_available(), **_own_store())
    except ValueError as error:
        raise UserError(
            f"WORLD_SIZE in the environment is {os.environ['WORLD_SIZE']}, as torchrun sets it, "
            f"but the processes do not meet: {error}. Start with torchrun, or unset WORLD_SIZE."
        ) from error


def _own_store() -> dict[str, Any]:
    """Where processes that torchrun has restarted tell each other their addresses.

    torchrun keeps one store for all its restarts (torch 2.13; pytorch issue 135712), where a
    process that died has left its address; who reads that waits for it, mostly without end. Below a
    prefix of its own, each restart finds only what it wrote itself.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    # Machines count their restarts apart.
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    if attempt == "0" or not (kept and one_machine):
        return {}
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(*address, is_master=False, timeout=PATIENCE)
    numbers = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    return {"store": PrefixStore(f"restart {attempt}", store), **numbers}

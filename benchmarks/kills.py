"""Runs of every kind, killed at every moment and started again: how many end as if nobody had.

    python benchmarks/kills.py --kills 9

Each kill ends all processes of a run at once (SIGKILL to their group): at a drawn event of a moment
(files of the start, a step, a save, a validation, a line of metrics, the end of an old checkpoint,
the adapter, the report), half of them in the middle of a file, or at any time. `--resume auto` goes
on. A kill is survived if what lay there was whole, and if in the end adapter, losses and figures
are those of a run that nobody killed, bit by bit, and nothing else lies there. Writes
benchmarks/results/kills.json.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "kills.json"
sys.path.insert(0, str(ROOT))
# Tiny models gain nothing by a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def campaign(kind: str, kills: int, world: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Kill runs of one kind so often; returns what was tried and survived, by moment."""
    from tests.killed_runs import KINDS, Killed, moments_of
    from tests.killing import MOMENTS

    begun, failures = time.perf_counter(), []
    moments = moments_of(list(KINDS).index(kind), kills)
    survived: Counter[str] = Counter()
    runs = Killed(KINDS[kind], world, folder)
    for first in range(0, kills, len(MOMENTS)):
        chance = random.Random(f"{seed} {kind} {first}")
        try:
            for run in runs.kill(moments[first : first + len(MOMENTS)], chance):
                survived.update(run)
        except AssertionError as error:
            failures.append(str(error)[:2000])
    tried = Counter(moments)
    rows = {m: {"tried": tried[m], "survived": survived[m]} for m in MOMENTS if tried[m]}
    total = {"tried": kills, "survived": survived.total(), "moments": rows, "failures": failures}
    return {**total, "seconds": round(time.perf_counter() - begun, 1)}


def main() -> None:
    """Kill runs of all kinds and write the result."""
    from tests.killed_runs import KINDS, make_world

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=9, help="of each kind of run")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch

    from tuninglab.comparison.machine import describe_machine, load_average
    from tuninglab.run_folder import versions

    result = {
        "command": " ".join(["python benchmarks/kills.py", *sys.argv[1:]]),
        "machine": {**describe_machine(torch.device("cpu")), "load_before": load_average()},
        "versions": versions(),
    }
    kinds: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        os.environ["TUNINGLAB_DATA_CACHE"] = str(Path(place) / "data cache")
        world = Path(place) / "world"
        world.mkdir()
        make_world(world)
        for number, kind in enumerate(options.kinds):
            folder = Path(place) / str(number)
            kinds[kind] = campaign(kind, options.kills, world, folder, options.seed)
            said = f"{kinds[kind]['survived']} of {kinds[kind]['tried']} kills survived"
            print(f"{kind}: {said}, {kinds[kind]['seconds']} s", file=sys.stderr)
            total = {n: sum(kind[n] for kind in kinds.values()) for n in ("tried", "survived")}
            # After each: a campaign takes long.
            RESULT.write_text(json.dumps({**result, **total, "kinds": kinds}, indent=1) + "\n")


if __name__ == "__main__":
    main()

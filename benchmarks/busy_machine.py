"""What other work on the machine costs a training step, on CPUs: it competes with itself.

    python benchmarks/busy_machine.py

A process trains as the command line does (threads, and how they wait for each other, are chosen the
same way): alone, beside a process that computes all the time, beside a second training of its own
kind. Where it starts before the other work, its threads wait as on a quiet machine; where it starts
after it, asleep (tuninglab/threads.py). Writes benchmarks/results/busy_machine.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "busy_machine.json"
sys.path.insert(0, str(ROOT))

KINDS = ("T5, int8", "Flamingo, int8", "Flamingo, fp32", "demonstration's, fp32")
LOOP = [sys.executable, "-c", "while True: pass"]
WARM_UP_STEPS = 2
# What OpenMP's threads do of themselves, without tuninglab's choice: they spin for long.
UNTOUCHED = {"GOMP_SPINCOUNT": "300000"}


def train(kind: str, folder: Path) -> None:
    """In a process of its own: train on one batch for ever, print the seconds of each step."""
    from tuninglab.threads import set_waiting

    set_waiting()  # before torch is loaded, as the command line does
    from tuninglab.comparison import device_here, rows_of, workloads
    from tuninglab.config import FinetuneConfig, FlanT5Config

    config: Any = FinetuneConfig()
    if kind.startswith("T5"):
        config, workload = FlanT5Config(), workloads.TextWorkload()
    elif kind.startswith("Flamingo"):
        workload = workloads.FlamingoWorkload(batch_size=2, tokens=128)
    else:
        workload = demonstration()
    bench = workloads.Bench(workload, folder / kind, device_here())
    if not bench.base.exists():
        workloads.save_random(workload, bench.base)
    variants = rows_of(config, bench.device)
    find = {"int8": lambda row: row.quantization == "int8", "fp32": lambda r: r.precision == "fp32"}
    variant = next(filter(find[kind.split(", ")[1]], variants))
    training, batch = variant.build(bench, 0), bench.batch(0)
    while True:
        began = time.perf_counter()
        training.step(batch)
        print(time.perf_counter() - began, flush=True)


def demonstration() -> Any:
    """The shapes of the demonstration's steps: 16 questions, a picture each, many small layers."""
    from tuninglab.comparison.workloads import FlamingoWorkload
    from tuninglab.embedded import base_directory

    config = json.loads((base_directory() / "config.json").read_text())
    unsaid = ("architectures", "dtype", "pad_token_id")
    text = {name: value for name, value in config["text_config"].items() if name not in unsaid}
    vision = config["vision_config"]
    vision = {name: vision[name] for name in vision if name not in (*unsaid, "model_type")}
    return FlamingoWorkload(
        text, vision, batch_size=16, tokens=73, answer_tokens=6, cross_attn_every_n_layers=2
    )


class Running:
    """A process that trains; its steps are read as they end."""

    def __init__(self, kind: str, folder: Path, environment: dict[str, str]):
        command = [sys.executable, __file__, "--train", kind, "--folder", str(folder)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.seconds: list[float] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.wait_for(WARM_UP_STEPS)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # Besides a step's time, only choices are printed.
            if line[0].isdigit():
                self.seconds.append(float(line))

    def wait_for(self, steps: int) -> list[float]:
        """The next steps' seconds."""
        have = len(self.seconds)
        while len(self.seconds) < have + steps:
            if self.process.poll() is not None:
                sys.exit(f"{self.process.args} ended")
            time.sleep(0.01)
        return self.seconds[have : have + steps]

    def measure(self, steps: int) -> list[float]:
        """Seconds of so many steps that begin from now on: the one that runs does not count."""
        return self.wait_for(steps + 1)[1:]


@contextmanager
def running(kind: str, folder: Path, **environment: str) -> Iterator[Running]:
    """A training that ends with the block."""
    training = Running(kind, folder, environment)
    try:
        yield training
    finally:
        training.process.kill()
        training.process.wait()


@contextmanager
def loop() -> Iterator[None]:
    """One process that computes without end, until the block ends."""
    process = subprocess.Popen(LOOP)
    try:
        # The load that a training looks at when it starts is a mean over a minute.
        yield
    finally:
        process.kill()
        process.wait()


def measure(kind: str, folder: Path, steps: int) -> dict[str, list[float]]:
    """Seconds of steps, alone and beside each kind of other work."""
    times: dict[str, list[float]] = {}
    quiet = {"GOMP_SPINCOUNT": "10000"}  # what set_waiting decides on a quiet machine
    for name, environment in (
        ("started before it", quiet),
        ("asleep, as started after it", {"OMP_WAIT_POLICY": "PASSIVE"}),
        ("torch as it is", UNTOUCHED),
    ):
        with running(kind, folder, **environment) as training:
            times[f"{name}: alone"] = training.measure(steps)
            with loop():
                time.sleep(0.5)
                times[f"{name}: beside a loop"] = training.measure(steps)
            with running(kind, folder, **environment):
                times[f"{name}: beside itself"] = training.measure(steps)
    return times


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--train", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        return train(options.train, options.folder)
    import torch

    from tuninglab.comparison.machine import describe_machine, load_average
    from tuninglab.run_folder import versions

    machine = {**describe_machine(torch.device("cpu")), "load_before": load_average()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            times = measure(kind, Path(folder), options.steps)
            alone = statistics.median(times["started before it: alone"])
            for name, values in times.items():
                row = {"kind": kind, "work": name, "step_s": [round(v, 3) for v in values]}
                row["ratio_to_idle"] = round(statistics.median(values) / alone, 2)
                rows.append(row)
                print(f"{kind}, {name}: {row['ratio_to_idle']} of idle", file=sys.stderr)
    result = {
        "command": "python benchmarks/busy_machine.py " + " ".join(sys.argv[1:]),
        "machine": machine,
        "versions": versions(),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

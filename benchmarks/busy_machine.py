"""What other work on the machine costs a training step, on CPUs: it competes with itself.

    python benchmarks/busy_machine.py

A process trains as the command line does (threads, and how they wait for each other, are chosen the
same way): alone, beside a process that computes all the time, beside a second training of its own
kind. Where it starts before the other work, its threads first wait as on a quiet machine, and sleep
when that is noticed; where it starts after it, they sleep from the start (tuninglab/threads.py).
The last rows are torch without any of this. Writes benchmarks/results/busy_machine.json.
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

KINDS = ("T5, int8", "demonstration's, fp32")
LOOP = [sys.executable, "-c", "while True: pass"]
WARM_UP_STEPS, NOTICE_STEPS = 2, 6
# What a training finds in its environment when it starts. On a busy machine OMP_WAIT_POLICY is what
# it decides by itself, but by a mean over a minute: here it need not wait for that.
WAYS: dict[str, dict[str, str]] = {
    "started before it": {"GOMP_SPINCOUNT": "10000"},
    "started after it": {"OMP_WAIT_POLICY": "PASSIVE"},
    "torch as it is": {},
}
PLAIN = "torch as it is"


def train(kind: str, folder: Path, plain: bool) -> None:
    """In a process of its own: train on one batch for ever, print the seconds of each step."""
    import torch

    from tuninglab.comparison import device_here, rows_of, workloads
    from tuninglab.config import FinetuneConfig, FlanT5Config
    from tuninglab.threads import Sleep

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
    sleep = Sleep(torch.get_num_threads())
    while True:
        began = time.perf_counter()
        training.step(batch)
        seconds = time.perf_counter() - began
        print(seconds, flush=True)
        if not plain:
            sleep({"step_s": seconds})


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

    def __init__(self, kind: str, folder: Path, way: str):
        command = [sys.executable, __file__, "--train", kind, "--folder", str(folder)]
        command += ["--plain"] if way == PLAIN else []
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **WAYS[way]},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.seconds: list[float] = []
        self.notice = 1 if way == PLAIN else NOTICE_STEPS  # the step that runs does not count
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
        """Seconds of so many steps, after some in which the training may notice what changed."""
        return self.wait_for(steps + self.notice)[self.notice :]


@contextmanager
def running(kind: str, folder: Path, way: str) -> Iterator[Running]:
    """A training that ends with the block."""
    training = Running(kind, folder, way)
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
        yield
    finally:
        process.kill()
        process.wait()


def measure(kind: str, folder: Path, steps: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of steps, by how the training waits and what runs beside it."""
    times: dict[tuple[str, str], list[float]] = {}
    for way in WAYS:
        with running(kind, folder, way) as training:
            times[way, "nothing"] = training.measure(steps)
            with loop():
                times[way, "a busy loop"] = training.measure(steps)
            # torch's own threads wait for one another then, up to a minute a step: left out.
            if way != PLAIN:
                with running(kind, folder, way):
                    times[way, "itself"] = training.measure(steps)
    return times


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--train", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        return train(options.train, options.folder, options.plain)
    import torch

    from tuninglab.comparison.machine import describe_machine, load_average
    from tuninglab.run_folder import versions

    machine = {**describe_machine(torch.device("cpu")), "load_before": load_average()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            times = measure(kind, Path(folder), options.steps)
            alone = statistics.median(times["started before it", "nothing"])
            for (way, beside), values in times.items():
                ratio = round(statistics.median(values) / alone, 2)
                row = {"kind": kind, "way": way, "beside": beside, "ratio_to_idle": ratio}
                rows.append({**row, "step_s": [round(value, 3) for value in values]})
                print(f"{kind}, {way}, beside {beside}: {ratio} of idle", file=sys.stderr)
    result = {
        "command": "python benchmarks/busy_machine.py " + " ".join(sys.argv[1:]),
        "machine": machine,
        "versions": versions(),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How long a run takes to its first step on 200,000 records about 20,000 pictures.

    python benchmarks/large_data.py --repeats 3
    python benchmarks/large_data.py --repeats 1 --checkout ../earlier --name earlier

A process of its own runs `tuninglab finetune` with the embedded base: cold, where nothing is known
of the data (the pictures are in the page cache, having just been written), and warm, where it was
read before. Seconds from the start of the process to the first line of metrics.jsonl; the peak of
its memory; and, from a run on a hundredth of the records, what one record costs. Two sets: drawings
of 64 x 64 pixels and photographs of 1024 x 768. Writes benchmarks/results/large_data.json.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "large_data.json"
sys.path.insert(0, str(ROOT))

from tuninglab.comparison.machine import describe_machine, load_average  # noqa: E402
from tuninglab.run_folder import git_commit, versions  # noqa: E402

RECORDS, PICTURES = 200_000, 20_000
# Drawn; the others repeat these, in files of another content.
DISTINCT = 200
SETS = {"drawings": ("PNG", (64, 64)), "photographs": ("JPEG", (1024, 768))}
QUESTIONS = (
    "what colour is the large shape in the middle",
    "how many things are there in this picture",
    "what is to the left of the red ball",
)
START = "import sys; from tuninglab.cli import main; sys.exit(main())"
GIVE_UP_S = 1200


def main() -> None:
    """Make both sets, measure each in turns, and add the figures to the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose tuninglab runs")
    parser.add_argument("--name", default="now", help="what the results call it")
    args = parser.parse_args()
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.sets:
            data = write_set(Path(folder) / name, *SETS[name])
            measured[name] = measure(data, args.checkout, args.repeats)
            print(json.dumps({name: measured[name]}, indent=2))
            shutil.rmtree(data)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results[args.name] = {
        "command": f"python benchmarks/large_data.py --repeats {args.repeats}",
        "commit": git_commit() if args.checkout == ROOT else commit_of(args.checkout),
        "machine": describe_machine(torch.device("cpu")),
        "load_average": load_average(),
        "versions": versions(),
        "records": RECORDS,
        "pictures": PICTURES,
        **measured,
    }
    RESULT.write_text(json.dumps(results, indent=2) + "\n")


def write_set(folder: Path, kind: str, size: tuple[int, int]) -> Path:
    """Write the pictures, and the records whole (all.jsonl) and a hundredth of them (few.jsonl)."""
    folder.mkdir()
    drawn = random.Random(0)
    for number in range(PICTURES):
        if number < DISTINCT:
            pixels = drawn.randbytes(size[0] * size[1] // 64 * 3)
            # Small noise, enlarged: as large in bytes as pictures of that size are.
            picture = Image.frombytes("RGB", (size[0] // 8, size[1] // 8), pixels)
            path = folder / f"{number}.img"
            picture.resize(size, Image.Resampling.BICUBIC).save(path, kind)
        else:
            # Behind the end of a picture anything may stand: each file has a content of its own.
            first = (folder / f"{number % DISTINCT}.img").read_bytes()
            (folder / f"{number}.img").write_bytes(first + str(number).encode())
    for name, count in (("all", RECORDS), ("few", RECORDS // 100)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for number in range(count):
                file.write(json.dumps(record(number)) + "\n")
    return folder


def record(number: int) -> dict[str, Any]:
    """A question about one of the pictures, and its answer."""
    question = f"<image>{QUESTIONS[number % len(QUESTIONS)]}, number {number}?"
    texts = (("user", question), ("assistant", f"it is {number % 17} and blue"))
    turns = [{"role": role, "content": text} for role, text in texts]
    return {"messages": turns, "images": [f"{number % PICTURES}.img"]}


def measure(data: Path, checkout: Path, repeats: int) -> dict[str, Any]:
    """Cold and warm starts in turns, and what a record costs in memory."""
    cold, warm = [], []
    for number in range(repeats):
        cache = data / f"cache-{number}"
        cold.append(first_step(data / "all.jsonl", checkout, cache))
        warm.append(first_step(data / "all.jsonl", checkout, cache))
        few = first_step(data / "few.jsonl", checkout, cache)
        shutil.rmtree(cache, ignore_errors=True)
    records = RECORDS - RECORDS // 100
    return {
        "cold": summary(cold),
        "warm": summary(warm),
        "bytes_a_record": round((warm[-1]["peak_mib"] - few["peak_mib"]) * 2**20 / records),
    }


def first_step(data: Path, checkout: Path, cache: Path) -> dict[str, float]:
    """Start a tuning; seconds and peak of memory at the first line of its metrics."""
    runs = data.parent / "runs"
    words = ["finetune", "--data", str(data), "--max_steps", "1", "--run_name", "r"]
    words += ["--output_dir", str(runs), "--overwrite"]
    environment = os.environ | {"PYTHONPATH": str(checkout), "TUNINGLAB_DATA_CACHE": str(cache)}
    metrics, started = runs / "r" / "metrics.jsonl", time.perf_counter()
    shutil.rmtree(runs, ignore_errors=True)
    process = subprocess.Popen(
        [sys.executable, "-c", START, *words],
        env=environment,
        cwd=checkout,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() is not None or time.perf_counter() - started > GIVE_UP_S:
            process.kill()
            raise SystemExit(f"no first step: {process.communicate()[1][-2000:]}")
        time.sleep(0.05)
    seconds = time.perf_counter() - started
    # The process may be gone by now, where a step is all that it makes.
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    process.communicate()
    return {"seconds": seconds, "peak_mib": int(peak) / 1024}


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """The median of the runs, and all of them."""
    seconds = [round(run["seconds"], 1) for run in runs]
    peaks = [round(run["peak_mib"]) for run in runs]
    return {
        "first_step_s": statistics.median(seconds),
        "all_s": seconds,
        "peak_mib": max(peaks),
    }


def commit_of(checkout: Path) -> str:
    """The commit of another checkout."""
    asked = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()

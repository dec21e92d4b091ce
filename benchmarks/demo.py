"""Run `tuninglab demo` several times with different seeds and keep what it reached.

    python benchmarks/demo.py --seeds 0 1 2

Each run is a process of its own, so that its time is what a user waits for. The embedded test set
is the same in every run: the spread is that of tuning. Writes benchmarks/results/demo.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "demo.json"


def run_once(seed: int, folder: Path) -> dict[str, Any]:
    """One demo in a fresh process: its report, and the wall time of the whole command in s."""
    command = [sys.executable, "-m", "tuninglab", "demo", "--seed", str(seed)]
    began_s = time.perf_counter()
    subprocess.run([*command, "--output_dir", str(folder)], cwd=ROOT, check=True)
    command_s = round(time.perf_counter() - began_s, 1)
    report = json.loads((folder / "demo" / "report.json").read_text())
    environment = json.loads((folder / "demo" / "environment.json").read_text())[-1]
    return {"seed": seed, "command_s": command_s, "report": report, "environment": environment}


def spread(values: list[float]) -> dict[str, float]:
    """Lowest, mean and highest of some values."""
    mean = sum(values) / len(values)
    return {"min": round(min(values), 4), "mean": round(mean, 4), "max": round(max(values), 4)}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Spread over the runs of every figure that the README quotes."""
    scores = [run["report"]["evaluation"] for run in runs]
    named = {
        "before": [s["before"] for s in scores],
        "after": [s["after"] for s in scores],
        "blank": [s["controls"]["blank"] for s in scores],
        "shuffled": [s["controls"]["shuffled"] for s in scores],
        "prior": [s["prior"] for s in scores],
    }
    figures: dict[str, Any] = {
        name: spread([s["exact_match"] for s in of_runs]) for name, of_runs in named.items()
    }
    for split in ("by_type", "by_group"):
        figures[f"after_{split}"] = {
            kind: spread([s[split][kind] for s in named["after"]])
            for kind in named["after"][0][split]
        }
    figures["tuning_s"] = spread([run["report"]["train"]["wall_s"] for run in runs])
    figures["command_s"] = spread([run["command_s"] for run in runs])
    figures["adapter_kib"] = spread([run["report"]["adapter_bytes"] / 1024 for run in runs])
    return figures


def main() -> None:
    """Parse the command line, run, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [run_once(seed, Path(folder)) for seed in options.seeds]
    result = {
        "command": "python benchmarks/demo.py --seeds " + " ".join(map(str, options.seeds)),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "versions": runs[0]["environment"]["versions"],
        "choices": runs[0]["environment"]["choices"],
        "repeats": len(runs),
        "summary": summary(runs),
        "runs": [{k: run[k] for k in ("seed", "command_s", "report")} for run in runs],
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["summary"], indent=2))


if __name__ == "__main__":
    main()

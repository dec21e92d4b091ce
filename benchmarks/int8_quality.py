"""What int8 does to quality: the embedded Flamingo and T5, tuned on int8 and on 16 bits.

    python benchmarks/int8_quality.py --seeds 0 1

Each run is the demonstration's own tuning in a process of its own. An adapter that was tuned on
int8 is scored on the 16-bit base besides. Test questions are the same in every run. Writes
benchmarks/results/int8_quality.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "int8_quality.json"
sys.path.insert(0, str(ROOT))


def tune_flamingo(seed: int, int8: bool, folder: str) -> dict[str, Any]:
    """The demonstration's tuning; its report."""
    from tuninglab.config import FinetuneConfig
    from tuninglab.recipes.demo import PICTURES, SETTINGS
    from tuninglab.recipes.flamingo import finetune

    own: Any = {"embedded_pictures": PICTURES, **SETTINGS}
    return finetune(
        FinetuneConfig(seed=seed, enable_int8=int8, output_dir=folder, run_name="run", **own)
    )


def tune_t5(seed: int, int8: bool, folder: str) -> dict[str, Any]:
    """The text demonstration's tuning, without its measurement of cost; its report."""
    from tuninglab.config import FlanT5Config
    from tuninglab.embedded import text_base_directory
    from tuninglab.recipes.flan_t5 import flan_t5

    base = str(text_base_directory())
    return flan_t5(
        FlanT5Config(model=base, seed=seed, enable_int8=int8, output_dir=folder, run_name="run")
    )


def score_flamingo(adapter: Path, dtype: Any) -> float:
    """Exact match of an adapter on the base in 16 bits."""
    from tuninglab.adapters.saving import load_adapter
    from tuninglab.embedded import base_directory
    from tuninglab.embedded.scoring import EmbeddedTask
    from tuninglab.evaluation.answers import generate_answers
    from tuninglab.models.build import load_flamingo

    model, processor = load_flamingo(base_directory(), dtype=dtype)
    task = EmbeddedTask(8)
    answers = generate_answers(load_adapter(model, adapter).eval(), processor, task.scored)
    return task.score("in 16 bits", answers)["exact_match"]


def score_t5(adapter: Path, dtype: Any) -> float:
    """Exact match of an adapter on the base in 16 bits."""
    from tuninglab.adapters.saving import load_adapter
    from tuninglab.embedded import text_base_directory
    from tuninglab.embedded.text_task import DateTask
    from tuninglab.evaluation.texts import generate_texts
    from tuninglab.models.text_to_text import load_text_to_text

    model, tokenizer = load_text_to_text(text_base_directory(), dtype)
    tuned = load_adapter(model, adapter).eval()
    task = DateTask(8)
    answers = generate_texts(tuned, tokenizer, [pair.source for pair in task.scored])
    return task.score("in 16 bits", answers)["exact_match"]


TASKS = {"flamingo": (tune_flamingo, score_flamingo), "t5": (tune_t5, score_t5)}


def one_run(task: str, seed: int, int8: bool) -> dict[str, Any]:
    """Tune once, in this process; the figures that are compared."""
    from tuninglab.training.hardware import DTYPES

    tune, score = TASKS[task]
    with tempfile.TemporaryDirectory() as folder:
        report = tune(seed, int8, folder)
        after, train = report["evaluation"]["after"], report["train"]
        figures = {
            "task": task,
            "seed": seed,
            "enable_int8": int8,
            "precision": report["precision"],
            "exact_match": after["exact_match"],
            "val_loss": after["val_loss"],
            "tuning_s": train["wall_s"],
            "steps": train["steps"],
        }
        if int8:
            dtype = DTYPES[report["precision"]]
            figures["exact_match_on_16_bit_base"] = score(Path(folder) / "run" / "adapter", dtype)
            environment = json.loads((Path(folder) / "run" / "environment.json").read_text())[-1]
            figures["environment"] = {k: environment[k] for k in ("versions", "threads", "choices")}
    return figures


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """For each task: the gap of int8 to 16 bits (mean over seeds), and that between seeds."""
    figures: dict[str, Any] = {}
    for task in TASKS:
        mine = [run for run in runs if run["task"] == task]
        figures[task] = {}
        for name in ("val_loss", "exact_match"):
            by = {int8: [r[name] for r in mine if r["enable_int8"] == int8] for int8 in (0, 1)}
            means = [sum(values) / len(values) for values in by.values()]
            figures[task][name] = {
                "16-bit": by[0],
                "int8": by[1],
                "gap": means[1] - means[0],
                "seed_spread_16_bit": max(by[0]) - min(by[0]),
            }
    return figures


def main() -> None:
    """Parse the command line, run, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--resume", action="store_true", help="keep the runs already written")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        task, seed, int8 = options.one
        print(json.dumps(one_run(task, int(seed), int8 == "int8")))
        return
    runs = json.loads(RESULT.read_text())["runs"] if options.resume else []
    done = {(run["task"], run["seed"], run["enable_int8"]) for run in runs}
    for task in TASKS:
        for seed in options.seeds:
            for kind in ("16-bit", "int8"):
                if (task, seed, kind == "int8") not in done:
                    runs.append(in_a_process(task, seed, kind))
                    write(runs, options.seeds)


def in_a_process(task: str, seed: int, kind: str) -> dict[str, Any]:
    """The figures of a run in a fresh process, so that none is warm."""
    command = [sys.executable, __file__, "--one", task, str(seed), kind]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    run = json.loads(found.stdout.splitlines()[-1])
    print(f"{task}, seed {seed}, {kind}: {run}", file=sys.stderr, flush=True)
    return run


def write(runs: list[dict[str, Any]], seeds: list[int]) -> None:
    """Write what there is, with the summary once every run is there."""
    result: dict[str, Any] = {
        "command": "python benchmarks/int8_quality.py --seeds " + " ".join(map(str, seeds))
    }
    if len(runs) == 2 * len(TASKS) * len(seeds):
        result["summary"] = summary(runs)
    RESULT.write_text(json.dumps({**result, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()

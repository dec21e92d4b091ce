"""What a plan says of a run's memory, against what the run then takes: 12 configurations, and 9B.

    python benchmarks/plan.py
    python benchmarks/plan.py --only "embedded int8" "wide fp32"
    python benchmarks/plan.py --plans_only    # beside what was measured last

Each configuration is planned by `tuninglab plan` in one process and run for ten steps in another,
as a user would; compared are train.peak_memory_mib of its report.json and the median of its steps.
"wide" is a Flamingo whose language model is 768 wide (docs/int8.md), with random weights. Then
OpenFlamingo-9B is planned in int8. Writes benchmarks/results/plan.json.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "plan.json"
sys.path.insert(0, str(ROOT))

STEPS, RECORDS, SIDE_PX = 10, 120, 256
WORDS = "red blue green large small circle square triangle left right above below".split()
EMBEDDED = {"embedded_pictures": 80, "batch_size": 16}
WIDE = {"model": "wide", "data": "one.jsonl", "image_root": "pics", "batch_size": 8}
OWN = {"val_split": 0.2, "score_questions": 4}
FOUR = {"data": "four.jsonl", "image_root": "pics", **OWN}
# Name -> verb and settings.
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "embedded fp32": ("finetune", {**EMBEDDED, "precision": "fp32"}),
    "embedded bf16": ("finetune", {**EMBEDDED, "precision": "bf16"}),
    "embedded int8": ("finetune", {**EMBEDDED, "enable_int8": True}),
    "embedded fp32, checkpointing": (
        "finetune",
        {**EMBEDDED, "precision": "fp32", "activation_checkpointing": True},
    ),
    "embedded bf16, 4 pictures": ("finetune", {**FOUR, "batch_size": 16, "precision": "bf16"}),
    "T5 int8": ("flan-t5", {"embedded_pairs": 400, "batch_size": 32}),
    "wide fp32": ("finetune", {**WIDE, **OWN, "precision": "fp32"}),
    "wide bf16": ("finetune", {**WIDE, **OWN, "precision": "bf16"}),
    "wide int8": ("finetune", {**WIDE, **OWN, "enable_int8": True}),
    "wide int8, savers off": (
        "finetune",
        {**WIDE, **OWN, "enable_int8": True, "memory_savers": []},
    ),
    "wide bf16, every block checkpointed": (
        "finetune",
        {**WIDE, **OWN, "precision": "bf16", "checkpoint_every": 1},
    ),
    "wide int8, 4 pictures, 16 rows": (
        "finetune",
        {**WIDE, **FOUR, "enable_int8": True, "batch_size": 16},
    ),
}
NINE_B = "9B int8"
LARGE = ("finetune", {"model": "openflamingo-9b", "enable_int8": True, "precision": "bf16"})


def prepare(folder: Path) -> None:
    """Save the wide model and records with one and with four pictures."""
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig

    from tuninglab.comparison.workloads import LLAMA, TOWER, _with_random_weights
    from tuninglab.models import FlamingoConfig, FlamingoForConditionalGeneration
    from tuninglab.models.processing import FlamingoProcessor

    embedded, tower = FlamingoProcessor.from_pretrained("embedded"), dict[str, Any](TOWER)
    model_config = FlamingoConfig(
        text_config=LLAMA | {"pad_token_id": embedded.tokenizer.pad_token_id},
        vision_config=CLIPVisionConfig(**tower),
        cross_attn_every_n_layers=2,
        image_token_id=embedded.image_token_id,
        eoc_token_id=embedded.eoc_token_id,
    )
    model = _with_random_weights(FlamingoForConditionalGeneration, model_config).bfloat16()
    model.save_pretrained(folder / "wide")
    side = TOWER["image_size"]
    square = {"height": side, "width": side}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
    FlamingoProcessor(pictures, embedded.tokenizer).save_pretrained(folder / "wide")
    (folder / "pics").mkdir()
    for number in range(16):
        noise = Image.effect_noise((SIDE_PX, SIDE_PX), 40 + number).convert("RGB")
        noise.save(folder / "pics" / f"{number}.png")
    for name, count in (("one", 1), ("four", 4)):
        records = [record(random.Random(number), number, count) for number in range(RECORDS)]
        lines = "".join(json.dumps(one) + "\n" for one in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def record(rng: random.Random, number: int, pictures: int) -> dict[str, Any]:
    """A question of 100 words about some pictures, and an answer of 30."""
    question, answer = (" ".join(rng.choices(WORDS, k=count)) for count in (100, 30))
    user = {"role": "user", "content": "<image>" * pictures + question}
    # Records that share a picture stay on one side of --val_split.
    images = [f"{(number * pictures + k) % 16}.png" for k in range(pictures)]
    return {"messages": [user, {"role": "assistant", "content": answer}], "images": images}


def command_of(name: str, more: Sequence[str]) -> list[str]:
    """The words of a configuration, behind `tuninglab` and a verb, or before `--json`."""
    verb, settings = LARGE if name == NINE_B else CONFIGURATIONS[name]
    words = ["flan-t5"] if verb == "flan-t5" else []
    for key, value in settings.items():
        words += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return [*words, *more]


def tuninglab(words: Sequence[str], folder: Path) -> tuple[str, float, float]:
    """Run a command in a fresh process: its standard output, seconds, and highest memory in MiB."""
    began_s = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "tuninglab", *words]
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.PIPE)
        errors = process.stderr.read() if process.stderr else b""
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began_s
        said.seek(0)
        if status:
            raise SystemExit(f"{' '.join(command)}\n{errors.decode()[-2000:]}")
        return said.read(), seconds, usage.ru_maxrss / 1024


def planned(name: str, folder: Path) -> dict[str, Any]:
    """What `tuninglab plan` says of a configuration, and what saying it took."""
    said, seconds, highest_mib = tuninglab(["plan", *command_of(name, ["--json"])], folder)
    found = json.loads(said)
    return {
        "planned_mib": found["peak_memory_mib"]["total"],
        "planned_step_s": found["step_s"],
        "parts_mib": found["peak_memory_mib"],
        "plan_s": round(seconds, 1),
        "plan_peak_mib": round(highest_mib, 1),
    }


def run(name: str, folder: Path) -> dict[str, float]:
    """Tune for a few steps in a fresh process: the peak in its report, the median of its steps."""
    more = ["--run_name", "planned", "--overwrite", "--max_steps", str(STEPS)]
    words = command_of(name, more)
    tuninglab(words if words[0] == "flan-t5" else ["finetune", *words], folder)
    place = folder / "runs" / "planned"
    report = json.loads((place / "report.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step_s"] for line in lines if "loss" in line]
    # The first steps load libraries and make the optimizer's states.
    step_s = round(median(steps[2:]), 4)
    return {"measured_mib": report["train"]["peak_memory_mib"], "measured_step_s": step_s}


def write(result: dict[str, Any], path: Path) -> None:
    """Write the result as it stands."""
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Plan and run each configuration; write and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=[*CONFIGURATIONS])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--plans_only", action="store_true")
    options = parser.parse_args()
    import torch

    from tuninglab.comparison.machine import describe_machine, load_average, now

    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/plan.py", *sys.argv[1:]]),
        "date": now(),
        "machine": {**describe_machine(torch.device("cpu")), "load_before": load_average()},
        "versions": {"torch": torch.__version__},
        "rows": [],
    }
    before = {}
    if options.plans_only:
        last = json.loads(options.out.read_text(encoding="utf-8"))
        # When and by what it was measured stays with the figures.
        result |= {name: last[name] for name in ("command", "date", "machine", "versions")}
        names = ("measured_mib", "measured_step_s")
        before = {row["name"]: {name: row[name] for name in names} for row in last["rows"]}
        result["planned_again"] = now()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for one in options.only:
            measured = before[one] if options.plans_only else run(one, folder)
            row = {"name": one, **planned(one, folder), **measured}
            row["memory_error"] = round(row["planned_mib"] / row["measured_mib"] - 1, 3)
            row["step_error"] = round(row["planned_step_s"] / row["measured_step_s"] - 1, 3)
            result["rows"].append(row)
            # Each as soon as it is there: all of them take a quarter of an hour.
            write(result, options.out)
            numbers = f"{row['planned_mib']:7.0f} MiB planned {row['measured_mib']:7.0f} measured"
            times = f"step {row['planned_step_s']:.3f} s {row['measured_step_s']:.3f}"
            print(
                f"{one:38}{numbers} {row['memory_error']:+6.1%}  {times} {row['step_error']:+6.1%}",
                flush=True,
            )
        result["9B"] = planned(NINE_B, folder)
    print("OpenFlamingo-9B, int8:", json.dumps(result["9B"], indent=1))
    write(result, options.out)


if __name__ == "__main__":
    main()

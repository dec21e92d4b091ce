"""What a plan says of a run's memory, against what the run then takes: 12 configurations, and 9B.

    python benchmarks/plan.py
    python benchmarks/plan.py --only "embedded int8" "wide fp32"

Each configuration is planned in one fresh process, without weights, and run for three steps in
another, as a user would run it; compared is train.peak_memory_mib of its report.json. "wide" is a
Flamingo whose language model is 768 wide (docs/int8.md), with random weights. Then OpenFlamingo-9B
is planned in int8: time and memory of the whole process. Writes benchmarks/results/plan.json.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "plan.json"
sys.path.insert(0, str(ROOT))

MIB = 2**20
STEPS, RECORDS, SIDE_PX = 3, 48, 256
WORDS = "red blue green large small circle square triangle left right above below".split()
EMBEDDED = {"embedded_pictures": 40, "batch_size": 16}
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
LARGE = {"model": "openflamingo-9b", "enable_int8": True, "precision": "bf16", "batch_size": 8}
LARGE_SHAPE = (8, 256, 8 * 32, 1)


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


def plan(name: str) -> None:
    """In a fresh process: print the planned cost of a configuration as JSON."""
    from tuninglab.config import FinetuneConfig, FlanT5Config
    from tuninglab.inspection.cost import Shape
    from tuninglab.inspection.rehearsal import step_cost
    from tuninglab.recipes.planned_model import planned_model

    began_s = time.perf_counter()
    verb, settings = ("finetune", LARGE) if name == "9B" else CONFIGURATIONS[name]
    kind: Any = FlanT5Config if verb == "flan-t5" else FinetuneConfig
    config = kind(**{"precision": "bf16", **settings}).resolved()
    shape = Shape(*LARGE_SHAPE) if name == "9B" else first_batch(config)
    cost = step_cost(planned_model(config), shape, config.precision)
    highest_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print()
    print(
        json.dumps(
            {
                "shape": shape._asdict(),
                "predicted_mib": round(cost.peak / MIB, 1),
                "held_mib": {n: round(v / MIB, 1) for n, v in cost.held.items()},
                "step_mib": {n: round(v / MIB, 1) for n, v in cost.step.items()},
                "operations": cost.operations,
                "plan_s": round(time.perf_counter() - began_s, 2),
                "plan_peak_mib": round(highest_kib / 1024, 1),
            }
        )
    )


def first_batch(config: Any) -> Any:
    """The shape of the first batch, by the run's own collator: all records are about alike."""
    from tuninglab.config import FlanT5Config
    from tuninglab.data.batches import Collator, SampleDataset
    from tuninglab.data.text_batches import PairCollator, PairDataset
    from tuninglab.embedded import text_base_directory
    from tuninglab.inspection.cost import Shape
    from tuninglab.models.parts import load_tokenizer
    from tuninglab.models.processing import FlamingoProcessor
    from tuninglab.recipes import flamingo, flan_t5

    count = config.batch_size
    if isinstance(config, FlanT5Config):
        tokenizer = load_tokenizer(text_base_directory())
        pairs = PairDataset(flan_t5.open_data(config).splits.train, tokenizer)
        batch = PairCollator(tokenizer.pad_token_id)([pairs[k] for k in range(count)])
        return Shape(count, batch.inputs["input_ids"].shape[1], batch.answer_tokens)
    processor = FlamingoProcessor.from_pretrained(config.model)
    processor.use_prompt(config.prompt)
    rows = SampleDataset(flamingo.open_data(config).splits.train, processor)
    collator = Collator(processor.tokenizer.pad_token_id, processor.image_size)
    batch = collator([rows[k] for k in range(count)])
    ids, pixels = batch.inputs["input_ids"], batch.inputs["pixel_values"]
    return Shape(count, ids.shape[1], batch.answer_tokens, pixels.shape[1])


def run(name: str, folder: Path) -> float:
    """Tune for a few steps in a fresh process; the peak that its report holds, in MiB."""
    verb, settings = CONFIGURATIONS[name]
    words = [verb, "--run_name", "planned", "--overwrite", "--max_steps", str(STEPS)]
    for key, value in settings.items():
        words += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    command = [sys.executable, "-m", "tuninglab", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    report = json.loads((folder / "runs" / "planned" / "report.json").read_text(encoding="utf-8"))
    return report["train"]["peak_memory_mib"]


def planned(name: str, folder: Path) -> dict[str, Any]:
    """What `plan` prints in a fresh process, and how long that took with all imports."""
    began_s = time.perf_counter()
    command = [sys.executable, str(Path(__file__).resolve()), "--plan", name]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "process_s": round(time.perf_counter() - began_s, 1)}


def write(result: dict[str, Any], path: Path) -> None:
    """Write the result as it stands."""
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Plan and run each configuration; write and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=[*CONFIGURATIONS])
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.plan:
        plan(options.plan)
        return
    import torch

    from tuninglab.comparison.machine import describe_machine, load_average, now

    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/plan.py", *sys.argv[1:]]),
        "date": now(),
        "machine": {**describe_machine(torch.device("cpu")), "load_before": load_average()},
        "versions": {"torch": torch.__version__},
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for one in options.only:
            row = {"name": one, **planned(one, folder), "measured_mib": run(one, folder)}
            row["error"] = round(row["predicted_mib"] / row["measured_mib"] - 1, 3)
            result["rows"].append(row)
            # Each as soon as it is there: all of them take half an hour.
            write(result, options.out)
            numbers = f"{row['predicted_mib']:8.1f} MiB planned {row['measured_mib']:8.1f} measured"
            print(f"{one:38}{numbers} {row['error']:+7.1%}", flush=True)
        result["9B"] = planned("9B", folder)
    print("OpenFlamingo-9B, int8:", json.dumps(result["9B"], indent=1))
    write(result, options.out)


if __name__ == "__main__":
    main()

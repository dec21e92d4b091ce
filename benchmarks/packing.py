"""What padding costs: padded batches, batches of like lengths (--group_by_length), packed rows.

    python benchmarks/packing.py --rounds 5

Two sets of records for the embedded Flamingo: the questions of the demonstration, which are nearly
of one length, and dialogues of one to ten of these questions, one in five without a picture. Each
way trains once on the same records, a round after the other, in turns. Weights are those that ship;
what is measured is what a pass over the records costs, of which loading and pictures' decoding are
no part. Writes benchmarks/results/packing.json.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "packing.json"
sys.path.insert(0, str(ROOT))

BATCH_ROWS, PACK_TOKENS, PACK_IMAGES = 16, 512, 16
MOST_TURNS, WITHOUT_PICTURE = 10, 0.2


def demo(count: int) -> list[Any]:
    """The first training records of the demonstration."""
    from tuninglab.embedded.scoring import EmbeddedTask

    # Each picture has one question at least.
    train = EmbeddedTask(count).splits.train
    return [train[number] for number in range(count)]


def mixed(count: int) -> list[Any]:
    """Dialogues of the demonstration's questions: many short ones, few long ones."""
    from tuninglab.data.sample import Sample, content_parts

    drawn, questions = np.random.default_rng(0), demo(64)
    found = []
    for number in range(count):
        turns = min(MOST_TURNS, int(drawn.geometric(0.35)))
        chosen = [questions[k] for k in drawn.integers(0, len(questions), turns)]
        messages = [message for one in chosen for message in one.messages]
        images = [image for one in chosen for image in one.images]
        if drawn.random() < WITHOUT_PICTURE:
            texts = [[p for p in content_parts(m["content"]) if "text" in p] for m in messages]
            messages = [m | {"content": t} for m, t in zip(messages, texts, strict=True)]
            images = []
        found.append(Sample(messages, images, f"dialogue {number}"))
    return found


def batches_of(samples: Sequence[Any], model: Any, processor: Any) -> dict[str, list[list[Any]]]:
    """For each way, the steps of an epoch, each a list of micro-batches."""
    from tuninglab.data.batches import Collator, SampleDataset
    from tuninglab.data.loading import make_loader, step_batches
    from tuninglab.data.orders import Permutation
    from tuninglab.data.packing import GroupedOrder, PackedCollator, PackedDataset, PackedOrder
    from tuninglab.data.prompt import dialogue_tokens
    from tuninglab.data.sampler import StepSampler

    rows: Any = SampleDataset(samples, processor)
    collator = Collator(processor.tokenizer.pad_token_id, processor.image_size)
    lengths = np.array([dialogue_tokens(sample, processor.tokenizer) for sample in samples])
    pictures = np.array([len(sample.images) for sample in samples])
    plain = Permutation(len(samples))
    packed = PackedOrder(plain, lengths, pictures, PACK_TOKENS, PACK_IMAGES)
    packs = PackedDataset(rows), PackedCollator(collator, model.config.image_token_id)
    ways: dict[str, Any] = {
        "padded": (rows, collator, plain, BATCH_ROWS),
        "group_by_length": (rows, collator, GroupedOrder(plain, lengths, BATCH_ROWS), BATCH_ROWS),
        "pack_tokens": (*packs, packed, 1),
    }
    made = {}
    for way, (dataset, collate, order, size) in ways.items():
        sampler = StepSampler(len(samples), size, order=order)
        made[way] = list(step_batches(make_loader(dataset, collate, sampler), sampler.steps_in(0)))
    return made


def train_once(model: Any, steps: list[list[Any]], optimizer: Any, accelerator: Any) -> float:
    """Seconds of an epoch."""
    from tuninglab.training.step import batch_loss

    begun = time.perf_counter()
    for batches in steps:
        count = sum(batch.answer_tokens for batch in batches)
        for batch in batches:
            batch_loss(model, batch, count, accelerator).backward()
        optimizer.step()
        optimizer.zero_grad()
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def measure(samples: Sequence[Any], rounds: int) -> list[dict[str, Any]]:
    """A row for each way; the first round warms up and is left out."""
    from accelerate import Accelerator

    from tuninglab.adapters.lora import tune
    from tuninglab.comparison.timing import ratio_of
    from tuninglab.config import FinetuneConfig
    from tuninglab.embedded import base_directory
    from tuninglab.models.build import load_flamingo
    from tuninglab.training.loop import set_training_mode

    accelerator = Accelerator()
    model, processor = load_flamingo(base_directory(), torch.float32)
    ways = batches_of(samples, model, processor)
    model.requires_grad_(False)
    model = tune(model, FinetuneConfig().tuning_config).to(accelerator.device)
    set_training_mode(model)
    # A rate of 0: in each round the same is computed.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        # In turns, each round in the order of the last one reversed.
        for way, steps in list(ways.items())[:: -1 if number % 2 else 1]:
            seconds = train_once(model, steps, optimizer, accelerator)
            if number:
                times[way].append(seconds)
    return [
        _row(way, steps, times[way], ratio_of(times[way], times["padded"]))
        for way, steps in ways.items()
    ]


def _row(
    way: str, steps: list[list[Any]], times: list[float], ratio: tuple[float, float]
) -> dict[str, Any]:
    batches = [batch for step in steps for batch in step]
    tokens = sum(batch.tokens for batch in batches)
    answers = sum(batch.answer_tokens for batch in batches)
    read = sum(batch.inputs["input_ids"].numel() for batch in batches)
    seconds = statistics.median(times)
    return {
        "way": way,
        "records": sum(batch.samples for batch in batches),
        "steps": len(steps),
        "tokens": tokens,
        "answer_tokens": answers,
        "padding": round(1 - tokens / read, 4),
        "tokens_per_s": round(tokens / seconds, 1),
        "step_ms_per_answer_token": round(1000 * seconds / answers, 4),
        "epoch_s": round(seconds, 3),
        "epoch_s_min": round(min(times), 3),
        "epoch_s_max": round(max(times), 3),
        "time_ratio": round(ratio[0], 4),
        "time_ratio_min": round(ratio[1], 4),
        "times_s": [round(value, 3) for value in times],
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=128)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    from tuninglab.comparison.machine import describe_machine, load_average, now
    from tuninglab.run_folder import versions

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = load_average()
    rows = {name.__name__: measure(name(options.records), options.rounds) for name in (demo, mixed)}
    result = {
        "rows": rows,
        "batch_rows": BATCH_ROWS,
        "pack_tokens": PACK_TOKENS,
        "pack_images": PACK_IMAGES,
        "precision": "fp32",
        "rounds": options.rounds,
        "command": "python benchmarks/packing.py " + " ".join(sys.argv[1:]),
        "machine": describe_machine(device) | {"load_before": before, "load_after": load_average()},
        "versions": versions(),
        "date": now(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

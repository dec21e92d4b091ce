"""What the engine of `evaluate` saves: questions a second, against asking them one by one.

    python benchmarks/evaluate.py --rounds 5

Test questions of the demonstration for the embedded Flamingo, each under three conditions: as
asked, with a blank picture and with another question's. Ways, a round after the other, in turns:
`one_by_one` generates each answer alone and encodes the picture of each; `batches` does so in
batches in the order of the data; `engine` is `answer_all`, from nothing kept to predictions.jsonl.
Pictures are drawn before; that they are made pixels is a part of all ways. All ways must give the
same answers. Writes benchmarks/results/evaluate.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "evaluate.json"
sys.path.insert(0, str(ROOT))

BATCH_SIZE = 32
CONDITIONS = ("asked", "blank", "shuffled")


def samples_of(count: int) -> dict[str, Sequence[Any]]:
    """Samples under each condition, with their pictures drawn."""
    from tuninglab.embedded.task import EmbeddedSamples
    from tuninglab.evaluation.conditions import Blanked, Shuffled

    source = EmbeddedSamples("test", count)
    asked = [source[number] for number in range(count)]
    groups = [item.group for item in source.items]
    given = (asked, Blanked(asked), Shuffled(asked, groups))
    return {name: list(some) for name, some in zip(CONDITIONS, given, strict=True)}


def ways_of(samples: dict[str, Sequence[Any]], model: Any, processor: Any, accelerator: Any):
    """By the name of a way, a function that answers everything and returns the texts."""
    from tuninglab.evaluation.answers import generate_answers
    from tuninglab.evaluation.asking import Dialogue
    from tuninglab.evaluation.encoded import EncodedPictures
    from tuninglab.evaluation.engine import Answerer, answer_all
    from tuninglab.evaluation.predictions import PredictionsFile
    from tuninglab.evaluation.questions import question_of

    asked = [question_of(s, str(number)) for number, s in enumerate(samples["asked"], 1)]
    shown = {name: lambda k, some=some: some[k].images for name, some in samples.items()}

    def engine() -> dict[str, list[str]]:
        pictures = EncodedPictures.repeatable(accelerator.device, BATCH_SIZE)
        answerer = Answerer(model, processor, accelerator, pictures, BATCH_SIZE)
        with tempfile.TemporaryDirectory() as folder:
            file = PredictionsFile(Path(folder))
            found = answer_all(answerer, asked, Dialogue(processor), shown, file)
        return {name: [one.texts[name] for one in found] for name in samples}

    def generated(size: int) -> dict[str, list[str]]:
        return {n: generate_answers(model, processor, some, size) for n, some in samples.items()}

    return {
        "one_by_one": lambda: generated(1),
        "batches": lambda: generated(BATCH_SIZE),
        "engine": engine,
    }


@contextmanager
def timed(model: Any, names: Sequence[str], device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds spent in methods of the model, while the block lasts."""
    seconds = dict.fromkeys(names, 0.0)

    def noting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            begun = now(device)
            result = method(*given, **options)
            seconds[name] += now(device) - begun
            return result

        return call

    for name in names:
        setattr(model, name, noting(name, getattr(model, name)))
    try:
        yield seconds
    finally:
        for name in names:
            delattr(model, name)


def now(device: torch.device) -> float:
    """A clock that waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(count: int, rounds: int, accelerator: Any) -> dict[str, Any]:
    """Rows of the ways, and the shares of the engine's time; a first round warms up."""
    from tuninglab.embedded import base_directory
    from tuninglab.models.build import load_flamingo

    model, processor = load_flamingo(base_directory(), torch.float32)
    model.requires_grad_(False).eval().to(accelerator.device)
    ways = ways_of(samples_of(count), model, processor, accelerator)
    times: dict[str, list[float]] = {way: [] for way in ways}
    answers: dict[str, Any] = {}
    for number in range(rounds + 1):
        # In turns, each round in the order of the last one reversed.
        for way, work in list(ways.items())[:: -1 if number % 2 else 1]:
            begun = now(accelerator.device)
            answers[way] = work()
            if number:
                times[way].append(now(accelerator.device) - begun)
    parts = ("encode_images", "encode_key_values")
    begun = now(accelerator.device)
    with timed(model, parts, accelerator.device) as seconds:
        ways["engine"]()
    whole = now(accelerator.device) - begun
    plain = answers["one_by_one"]
    differing = {
        way: sum(
            a != b for name in CONDITIONS for a, b in zip(some[name], plain[name], strict=True)
        )
        for way, some in answers.items()
    }
    return {
        "rows": [_row(way, times, count, differing[way]) for way in ways],
        "share_of_time": {name: round(part / whole, 4) for name, part in seconds.items()},
    }


def _row(way: str, times: dict[str, list[float]], count: int, differing: int) -> dict[str, Any]:
    from tuninglab.comparison.timing import ratio_of

    own, plain = times[way], times["one_by_one"]
    ratio, lowest = ratio_of(own, plain)
    ratios = [one / other for one, other in zip(own, plain, strict=True)]
    return {
        "way": way,
        "samples_per_s": round(count / statistics.median(own), 2),
        "samples_per_s_min": round(count / max(own), 2),
        "samples_per_s_max": round(count / min(own), 2),
        "time_ratio": round(ratio, 4),
        "time_ratio_min": round(lowest, 4),
        "time_ratio_of_rounds": [round(min(ratios), 4), round(max(ratios), 4)],
        "times_s": [round(value, 3) for value in own],
        "answers_unlike_one_by_one": differing,
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    from accelerate import Accelerator

    from tuninglab.comparison.machine import describe_machine, load_average
    from tuninglab.comparison.machine import now as today
    from tuninglab.run_folder import versions

    accelerator = Accelerator()
    before = load_average()
    measured = measure(options.questions, options.rounds, accelerator)
    result = {
        **measured,
        "questions": options.questions,
        "conditions": list(CONDITIONS),
        "batch_size": BATCH_SIZE,
        "precision": "fp32",
        "rounds": options.rounds,
        "command": " ".join(["python benchmarks/evaluate.py", *sys.argv[1:]]),
        "machine": describe_machine(accelerator.device)
        | {"load_before": before, "load_after": load_average()},
        "versions": versions(),
        "date": today(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

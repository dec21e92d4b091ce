"""How long reading takes: 100,000 records of a data file, and the tensors of a checkpoint.

    python benchmarks/reading.py --repeats 7

Seconds of CPU time of one process (`time.process_time`; decoding pictures uses threads, of which
all count), the median and the least of the repeats, the first of which is left out. Compare two
commits in turns: `PYTHONPATH=<checkout> python benchmarks/reading.py`. Writes nothing; prints JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tuninglab.data.images import load_image  # noqa: E402
from tuninglab.data.reading.opening import read_samples  # noqa: E402
from tuninglab.data.reading.pairs import read_pairs  # noqa: E402
from tuninglab.models.formats.reading import read_checkpoint  # noqa: E402
from tuninglab.run_folder import git_commit  # noqa: E402

RECORDS = 100_000
PICTURES = 500
# Like a bridge of 64 layers: 64 MiB.
TENSORS = {f"lang_encoder.layers.{n}.weight": (512, 512) for n in range(64)}
PHOTO = (4000, 3000)


def main() -> None:
    """Make the files, read each in turns with the others, and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        works = make_files(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(repeats + 1):
            for name, work in works.items():
                started = time.process_time()
                work()
                seconds[name].append(time.process_time() - started)
    measured = {
        name: {"median_s": statistics.median(times[1:]), "least_s": min(times[1:])}
        for name, times in seconds.items()
    }
    print(json.dumps({"commit": git_commit(), "repeats": repeats, **measured}, indent=2))


def make_files(folder: Path) -> dict[str, Callable[[], Any]]:
    """Files of one size each time, and what reads them, by name."""
    for number in range(PICTURES):
        Image.new("RGB", (64, 48), (number % 256, 3, 9)).save(folder / f"{number}.png")
    Image.effect_noise(PHOTO, 60).convert("RGB").save(folder / "photo.jpg", quality=80)
    write_lines(folder / "dialogues.jsonl", dialogue)
    write_lines(folder / "pairs.jsonl", lambda n: {"source": f"say {n}", "target": f"yes {n}"})
    state = {name: torch.randn(shape) for name, shape in TENSORS.items()}
    torch.save({"model_state_dict": state}, folder / "checkpoint.pt")
    return {
        "dialogues with pictures": lambda: read_samples(folder / "dialogues.jsonl"),
        "pairs": lambda: read_pairs(folder / "pairs.jsonl"),
        "checkpoint": lambda: read_checkpoint(folder / "checkpoint.pt"),
        "photo of 12 million pixels": lambda: load_image(folder / "photo.jpg"),
    }


def dialogue(number: int) -> dict[str, Any]:
    """A record of a question about one of the pictures."""
    turns = [("user", f"<image>what is number {number}?"), ("assistant", f"it is {number}")]
    messages = [{"role": role, "content": text} for role, text in turns]
    return {"messages": messages, "images": [f"{number % PICTURES}.png"]}


def write_lines(path: Path, record: Callable[[int], dict[str, Any]]) -> None:
    """A file of JSON lines."""
    lines = (json.dumps(record(number)) for number in range(RECORDS))
    path.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Tune the embedded Flamingo on pictures it has never seen, by the README's line, all defaults.

    python benchmarks/own_data.py --twitter emoji-datasource-twitter --stamps stamps

The pictures: the npm package emoji-datasource-twitter, unpacked (drawings, by Twitter), and
usr/share/tuxpaint/stamps of Debian's tuxpaint-stamps-default (photographs and drawings).
Pre-training saw none of them. Of a drawing in several skins one is taken, so that nothing shown
lies in two splits. Writes benchmarks/results/own_data.json.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "own_data.json"
SIDE_PX, RECORDS = 96, 2400
SKINS = {"1F3FB": "light", "1F3FC": "medium light", "1F3FD": "medium", "1F3FE": "medium dark"}
SKINS["1F3FF"] = "dark"
# A picture, and what may be asked about it: (question, answer).
Asked = tuple[Path, list[tuple[str, str]]]


def twitter(package: Path, rng: random.Random) -> list[Asked]:
    """Emoji: the category, whether it is a flag, the skin, and the name."""
    found = []
    for entry in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        if not entry["has_img_twitter"] or entry["category"] == "Component":
            continue
        tone = rng.choice(["", *entry.get("skin_variations", {})]) if rng.random() < 0.8 else ""
        image = entry["skin_variations"][tone]["image"] if tone else entry["image"]
        flag = "yes" if entry["category"] == "Flags" else "no"
        asked = [("Which category does this belong to?", entry["category"])]
        # Seldom: nobody can know the name of a thing of which there is one picture in all.
        if rng.random() < 0.15:
            name = entry["short_name"].replace("_", " ").replace("-", " ")
            asked.append(("What is this called?", name))
        # As many flags as other things are asked about, so that "no" is no good guess.
        if flag == "yes" or rng.random() < 0.17:
            asked.append(("Is this a flag?", flag))
        if "-" not in tone and tone:
            asked.append(("Which skin tone do you see?", SKINS[tone]))
        found.append((package / "img" / "twitter" / "64" / image, asked))
    return found


def stamps(folder: Path, rng: random.Random) -> list[Asked]:
    """Photographs and drawings: the kind of thing, the finer kind, and what it is."""
    found = []
    for text in sorted(folder.rglob("*.txt")):
        picture = text.with_suffix(".png")
        parts = text.relative_to(folder).parts
        if not picture.exists() or parts[0] == "symbols" and parts[1] == "alphabets":
            continue
        name = text.read_text(encoding="utf-8").splitlines()[0].strip().rstrip(".")
        asked = [("What kind of thing is this?", parts[0]), ("What does the picture show?", name)]
        if len(parts) > 2:
            asked.append((f"What kind of {parts[0]} do you see?", parts[1]))
        found.append((picture, asked))
    return found


def write_set(things: list[Asked], folder: Path, rng: random.Random) -> int:
    """RGB pictures on white and data.jsonl, at most RECORDS of them; returns how many."""
    (folder / "pics").mkdir(parents=True)
    records = []
    for k, (path, asked) in enumerate(things):
        with Image.open(path) as file:
            picture = file.convert("RGBA")
        picture.thumbnail((SIDE_PX, SIDE_PX))
        paper = Image.new("RGB", picture.size, "white")
        paper.paste(picture, (0, 0), picture)
        paper.save(folder / "pics" / f"{k:04d}.png")
        for question, answer in asked:
            user = {"role": "user", "content": f"<image>{question}"}
            messages = [user, {"role": "assistant", "content": answer}]
            records.append({"messages": messages, "images": [f"{k:04d}.png"]})
    rng.shuffle(records)
    with open(folder / "data.jsonl", "w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in records[:RECORDS])
    return min(len(records), RECORDS)


def tune(folder: Path, seed: int) -> dict[str, Any]:
    """The README's line in a fresh process: what the run reports, and its wall time in s."""
    data = ["--data", "data.jsonl", "--image_root", "pics", "--val_split", "0.1"]
    command = ["finetune", "--run_name", f"mine_{seed}", *data, "--seed", str(seed)]
    began_s = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tuninglab", *command], cwd=folder, check=True)
    command_s = round(time.perf_counter() - began_s, 1)
    run = folder / "runs" / f"mine_{seed}"
    report = json.loads((run / "report.json").read_text())
    scores = report["evaluation"]
    figures = {"before": scores["before"], "after": scores["after"], **scores["controls"]}
    figures["prior"] = scores["prior"]
    return {
        "seed": seed,
        "questions": scores["after"]["count"],
        **{name: score["exact_match"] for name, score in figures.items()},
        "by_type": scores["after"]["by_type"],
        "steps": report["train"]["steps"],
        "command_s": command_s,
        "environment": json.loads((run / "environment.json").read_text())[-1],
    }


def main() -> None:
    """Make the sets, tune on each with every seed, write and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--twitter", type=Path, help="the unpacked package")
    parser.add_argument("--stamps", type=Path, help="the folder of stamps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/own_data.py", *sys.argv[1:]]),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "sets": {},
    }
    for name, read in (("twitter", twitter), ("stamps", stamps)):
        if (source := getattr(options, name)) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rng = random.Random(7)
            things = read(source, rng)
            records = write_set(things, Path(folder), rng)
            runs = [tune(Path(folder), seed) for seed in options.seeds]
        for run in runs:
            environment = run.pop("environment")
            result |= {name: environment[name] for name in ("versions", "choices")}
        result["sets"][name] = {"pictures": len(things), "records": records, "runs": runs}
        print(name, json.dumps(result["sets"][name], indent=1))
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

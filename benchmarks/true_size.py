"""OpenFlamingo-9B at its true size on a CPU: memory and time to convert, tune and ask it, in int8.

    python benchmarks/true_size.py --folder /tmp/true_size

Weights are random, shapes and layouts those of the release: LLaMA-7B (fp16, 32000 rows), CLIP
ViT-L/14, and a checkpoint with Perceiver, gated blocks and token table (fp16). Each command runs in
a process of its own. Takes 45 GB of disk. Writes benchmarks/results/true_size.json.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "true_size.json"
sys.path.insert(0, str(ROOT))

from tuninglab.comparison.machine import describe_machine, load_average  # noqa: E402
from tuninglab.inspection.presets import PRESETS  # noqa: E402
from tuninglab.models import FlamingoConfig, FlamingoForConditionalGeneration  # noqa: E402
from tuninglab.run_folder import versions  # noqa: E402

SHARD_BYTES = 2_000_000_000
STEPS, RECORDS = 3, 8
QUESTIONS, ANSWER_TOKENS = 4, 8


def random_tensor(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Small random numbers in fp16, as large as those of a trained layer."""
    return (torch.randn(shape, generator=generator) * 0.02).half()


def write_weights(model: nn.Module, folder: Path) -> None:
    """Random weights for a model on the meta device, in shards, never all in memory."""
    folder.mkdir(parents=True)
    generator, shard, size, places, files = torch.Generator().manual_seed(0), {}, 0, {}, []

    def close() -> None:
        files.append(f"model-{len(files) + 1:05d}.safetensors")
        save_file(shard, folder / files[-1], metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, files[-1]))
        shard.clear()

    for name, tensor in model.state_dict().items():
        if size + tensor.numel() * 2 > SHARD_BYTES and shard:
            close()
            size = 0
        shard[name] = random_tensor(tensor.shape, generator)
        size += tensor.numel() * 2
    close()
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_parts(folder: Path, preset: dict[str, Any]) -> dict[str, Path]:
    """Language model, tower and checkpoint as they are downloaded; returns their paths."""
    config = FlamingoConfig(**{k: v for k, v in preset.items() if k != "model_type"})
    plain = {**preset["text_config"], "vocab_size": preset["text_config"]["vocab_size"] - 3}
    text = AutoConfig.for_model(**plain)
    with torch.device("meta"):
        flamingo = FlamingoForConditionalGeneration(config)
        lang_encoder = AutoModelForCausalLM.from_config(text)
        vision_encoder = AutoModel.from_config(config.vision_config)
    write_weights(lang_encoder, folder / "lang")
    text.save_pretrained(folder / "lang")
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{k}": k for k in range(3, text.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "lang")
    write_weights(vision_encoder, folder / "clip")
    config.vision_config.save_pretrained(folder / "clip")
    CLIPImageProcessorPil().save_pretrained(folder / "clip")
    saved = re.compile(r"perceiver\.|.*gated_cross_attn_layer\.|.*embed_tokens\.weight")
    generator = torch.Generator().manual_seed(1)
    state = {
        name: random_tensor(tensor.shape, generator)
        for name, tensor in flamingo.state_dict().items()
        if saved.match(name)
    }
    torch.save(state, folder / "checkpoint.pt")
    return {name: folder / name for name in ("lang", "clip", "checkpoint.pt")}


def write_data(folder: Path) -> Path:
    """A few records of one picture each."""
    records = []
    for number in range(RECORDS):
        Image.new("RGB", (224, 224), (20 * number, 90, 40)).save(folder / f"{number}.png")
        words = " ".join(f"w{100 + 7 * number + k}" for k in range(24))
        turns = [{"role": "user", "content": f"<image>{words}"}]
        turns.append({"role": "assistant", "content": " ".join(words.split()[:8])})
        records.append({"messages": turns, "images": [f"{number}.png"]})
    (folder / "data.json").write_text(json.dumps(records))
    return folder / "data.json"


def measured(words: list[str], lines: str = "") -> dict[str, Any]:
    """Run `tuninglab` with these words: wall time in s, peak memory in MiB, own and resident.

    Also `answers_s`: when each of `lines`, which it reads from a pipe, was answered.

    Its own is what only it holds (RssAnon); pages of mapped files, which the system takes back
    when it needs room, are resident besides. Looked at 20 times a second; Linux only.
    """
    began_s, peak = time.perf_counter(), {"RssAnon": 0, "VmRSS": 0}
    process = subprocess.Popen(
        [sys.executable, "-m", "tuninglab", *words],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(lines)
    process.stdin.close()
    answers_s: list[float] = []
    reader = threading.Thread(
        target=lambda out: answers_s.extend(time.perf_counter() - began_s for _ in out),
        args=(process.stdout,),
    )
    reader.start()
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        for name in peak:
            found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
            peak[name] = max(peak[name], int(found[1]) if found else 0)
        time.sleep(0.05)
    reader.join()
    if process.returncode:
        sys.exit(f"tuninglab {' '.join(words)} failed")
    return {
        "wall_s": round(time.perf_counter() - began_s, 1),
        "peak_own_mib": round(peak["RssAnon"] / 1024, 1),
        "peak_resident_mib": round(peak["VmRSS"] / 1024, 1),
        **({"answers_s": [round(second, 1) for second in answers_s]} if lines else {}),
    }


def stages(folder: Path, preset: str) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is measured, one after the other."""
    parts = write_parts(folder, PRESETS[preset])
    data = write_data(folder)
    made = ["--checkpoint", str(parts["checkpoint.pt"]), "--out", str(folder / "flamingo")]
    made += ["--lang_encoder", str(parts["lang"]), "--vision_encoder", str(parts["clip"])]
    yield "convert", lambda: measured(["convert", "--from", "open_flamingo", *made])
    for path in parts.values():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = ["--output_dir", str(folder), "--run_name", "int8", "--max_steps", str(STEPS)]
    run += ["--model", str(folder / "flamingo"), "--data", str(data), "--batch_size", "1"]
    yield "tune int8", lambda: measured(["finetune", *run, "--enable_int8", "true"])
    ask = [str(folder / "int8"), "--terminal", "--exact", "false"]
    ask += ["--image", str(data.with_name("0.png")), "--max_new_tokens", str(ANSWER_TOKENS)]
    questions = "".join(f"w{100 + number} w{200 + number}?\n" for number in range(QUESTIONS))
    yield "4 answers, int8", lambda: measured(["chat", *ask], questions)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="made, and deleted at the end")
    parser.add_argument("--preset", default="openflamingo-9b")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    machine = {**describe_machine(torch.device("cpu")), "load_before": load_average()}
    rows = [{"stage": name, **work()} for name, work in stages(options.folder, options.preset)]
    report = json.loads((options.folder / "int8" / "report.json").read_text())
    metrics = (options.folder / "int8" / "metrics.jsonl").read_text().splitlines()
    result = {
        "command": f"python benchmarks/true_size.py --folder {options.folder}",
        "model": options.preset,
        "machine": machine,
        "versions": versions(),
        "rows": rows,
        "step_s": [line["step_s"] for line in map(json.loads, metrics) if "step_s" in line],
        "trainable_parameters": report["train"]["trainable_parameters"],
        "adapter_bytes": report["adapter_bytes"],
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    shutil.rmtree(options.folder)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

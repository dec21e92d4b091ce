"""What a process holds and sends where several train together: --parallel ddp and fsdp2.

    python benchmarks/processes.py

A random Flamingo (a LLaMA of 8 layers 512 wide with a table of 16,003 tokens, a CLIP of 4 layers)
is tuned with LoRA for two steps by 1, 2 and 4 processes of this machine (gloo), its base in fp32,
bf16 and int8 made of a bf16 checkpoint as it is read, and in bf16 as it is saved. Each process
tells the bytes of weights it holds when training starts, by how much its private memory (RssAnon)
rose at most until these are put on its device or shared out, and from then on, and the bytes of the
collectives of one step of FSDP2, counted where torch calls them.

Writes benchmarks/results/processes.json.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

# The weights of a large model are so large that the C library returns them when they are freed;
# here it shall as well, and it reads this when a program starts.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
if __name__ == "__main__" and not ALLOCATOR.items() <= os.environ.items():
    environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "processes.json"
sys.path.insert(0, str(ROOT))

# Base on disk -> settings: what of it is made as it is read.
FORMATS = {
    "fp32, made of bf16": {"precision": "fp32"},
    "bf16, as saved": {"precision": "bf16"},
    "int8, made of bf16": {"precision": "fp32", "enable_int8": True},
}
WORLDS = ((1, "ddp"), (2, "fsdp2"), (4, "ddp"), (4, "fsdp2"))
LAYERS, WIDTH, TABLE = 8, 512, 16003


def save_base(folder: Path) -> None:
    """A random Flamingo in bf16."""
    import torch

    from tests import tiny

    tokenizer = tiny.tiny_tokenizer()
    text, tokens = tiny.speaking(tokenizer)
    text |= {"vocab_size": TABLE, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    text |= {"intermediate_size": 1376, "num_attention_heads": 8, "max_position_embeddings": 256}
    vision = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024}
    bridge = {"perceiver_depth": 2, "perceiver_latents": 16, "perceiver_heads": 4}
    bridge |= {"perceiver_dim_head": 64, "cross_attn_heads": 8, "cross_attn_dim_head": 64}
    config = tiny.flamingo_config("llama", text, vision, **bridge, **tokens)
    tiny.flamingo(config, 0.5).to(torch.bfloat16).save_pretrained(folder)
    tiny.processor_of(tokenizer).save_pretrained(folder)


def save_data(folder: Path) -> Path:
    """Sixteen one-colour pictures and their names."""
    from PIL import Image

    from tests.tiny import COLOURS, SIDE

    lines = []
    for number in range(16):
        name = list(COLOURS)[number % len(COLOURS)]
        Image.new("RGB", (SIDE, SIDE), COLOURS[name]).save(folder / f"{number}.png")
        turns = [("user", "<image>colour?"), ("assistant", name)]
        messages = [{"role": role, "content": text} for role, text in turns]
        lines.append(json.dumps({"messages": messages, "images": [f"{number}.png"]}))
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines))
    return path


class PrivateMemory(threading.Thread):
    """The most private memory of this process, looked at every 5 ms, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = self.first = self.now()

    @staticmethod
    def now() -> float:
        """What it is at the time."""
        text = Path("/proc/self/status").read_text("utf-8")
        return int(text.partition("RssAnon:")[2].split()[0]) / 2**10

    def run(self) -> None:
        """Look until the process ends."""
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.005)


def train(settings: dict[str, Any], out: Path) -> None:
    """Tune in this process, one of several, and write what it held and sent."""
    import torch
    import torch.distributed as dist

    from tuninglab.config import FinetuneConfig
    from tuninglab.recipes import common
    from tuninglab.recipes.flamingo import finetune
    from tuninglab.training import loop

    memory, figures, sent = PrivateMemory(), {}, {"all_gather": 0, "reduce_scatter": 0}
    memory.start()
    step, setup, spread = loop.optimizer_step, common.Setup, common.spread

    def counted(kind: str, function: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            # The whole of it; of that a process sends and takes (n - 1) / n in a ring.
            values = (*given, *named.values())
            sent[kind] += max(v.nbytes for v in values if isinstance(v, torch.Tensor))
            return function(*given, **named)

        return call

    def ready(*given: Any) -> Any:
        from torch.distributed.tensor import DTensor

        model = given[3]
        shares = (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())
        figures["weights_mib"] = round(sum(p.nbytes for p in shares) / 2**20, 1)
        return setup(*given)

    def spreading(*given: Any) -> Any:
        figures["loading_peak_mib"] = round(memory.peak - memory.first, 1)
        memory.peak = 0.0
        return spread(*given)

    def stepping(*given: Any) -> Any:
        before = dict(sent)
        outcome = step(*given)
        # The second step is one like all others.
        figures["step_gathers_mib"], figures["step_scatters_mib"] = (
            round((sent[kind] - before[kind]) / 2**20, 2) for kind in sent
        )
        figures["training_peak_mib"] = round(memory.peak - memory.first, 1)
        return outcome

    with (
        mock.patch.object(common, "Setup", ready),
        mock.patch.object(common, "spread", spreading),
        mock.patch.object(loop, "optimizer_step", stepping),
        mock.patch.object(dist, "all_gather_single", counted("all_gather", dist.all_gather_single)),
        mock.patch.object(
            dist, "reduce_scatter_single", counted("reduce_scatter", dist.reduce_scatter_single)
        ),
    ):
        finetune(FinetuneConfig(**settings))
    (out / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(figures))


def measure(base: Path, data: Path, folder: Path) -> list[dict[str, Any]]:
    """Each format in each world; of every figure the highest of the processes."""
    from tests.worlds import all_well, in_world
    from tuninglab.config.tuning import TuningConfig

    rows = []
    for form, chosen in FORMATS.items():
        for size, parallel in WORLDS:
            out = Path(tempfile.mkdtemp(dir=folder))
            settings = {"model": str(base), "data": str(data), "output_dir": str(out)}
            settings |= {"run_name": "run", "parallel": parallel, "max_steps": 2, **chosen}
            settings |= {"tuning_config": TuningConfig(train_answer_tokens="false")}
            settings |= {"batch_size": 4 // size}
            all_well(in_world(size, lambda s=settings, o=out: train(s, o), out))
            found = [json.loads((out / f"{rank}.json").read_text()) for rank in range(size)]
            row = {"base": form, "processes": size, "parallel": parallel}
            row |= {name: max(one[name] for one in found) for name in found[0]}
            # The first makes what the others map.
            others = [one["loading_peak_mib"] for one in found[1:]]
            row["loading_peak_of_others_mib"] = max(others, default=None)
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    """Measure and write the file."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    import torch

    # All that the processes share by being forked.
    from tuninglab.recipes import flamingo  # noqa: F401

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_base(folder / "base")
        rows = measure(folder / "base", save_data(folder), folder)
    told = {"torch": torch.__version__, "layers": LAYERS, "width": WIDTH, "table": TABLE}
    RESULT.write_text(json.dumps({"model": told, "rows": rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""Runs of every kind on tiny models, killed and started again: they end as if nobody had."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import ByT5Tokenizer

from tests.killing import MOMENTS, Ended, Kill, draw, start
from tests.tiny import COLOURS, colour_flamingo, processor_of, t5, tiny_tokenizer
from tuninglab.config import FinetuneConfig, FlanT5Config
from tuninglab.config.tuning import TextTuningConfig, TuningConfig
from tuninglab.recipes.flamingo import finetune
from tuninglab.recipes.flan_t5 import flan_t5
from tuninglab.run_folder.ownership import LEFT_OVER
from tuninglab.training.manifest import MANIFEST, damage_of

# What a clock or the memory says.
MEASURED = {"step_s", "tokens_per_s", "peak_memory_mib", "wall_s", "run_name"}
STEPS = {"max_steps": 6, "save_steps": 2, "eval_steps": 3, "score_questions": 2}
PLAIN = {"precision": "fp32", "batch_size": 2, "learning_rate": 3e-3, **STEPS}


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Args:
        settings: of it, beside those of all.
        tuning: of its tuning_config.
        text: whether it is a T5's.
        processes: how many train.
        scaled: whether gradients are scaled as with fp16 on a GPU.
        parts: whether its base is made of a language model and a tower.
        mixed: whether its data are two sets with weights.
        cached: whether the features of its pictures are, in a folder of the run's own.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)
    text: bool = False
    processes: int = 1
    scaled: bool = False
    parts: bool = False
    mixed: bool = False
    cached: bool = False


BEST = {"keep_best": "val_loss", "patience": 2, "eval_steps": 1, "keep_checkpoints": 1}
KINDS = {
    "plain": Kind(),
    "workers": Kind({"workers": 1}),
    "accumulation, dropout": Kind({"gradient_accumulation_steps": 2}, {"lora_dropout": 0.3}),
    "int8": Kind({"enable_int8": True}),
    "flan-t5": Kind(tuning={"lora_dropout": 0.2}, text=True),
    "fp16 scaler": Kind(scaled=True),
    "packed": Kind({"pack_tokens": 80, "batch_size": 1}),
    "mixture": Kind(mixed=True),
    "keep_best": Kind(BEST | {"learning_rate": 5e-2, "lr_scheduler": "constant"}),
    "features": Kind(cached=True),
    "new base": Kind(parts=True),
    "ddp": Kind({"workers": 1}, {"lora_dropout": 0.2}, processes=2),
    "fsdp2": Kind({"parallel": "fsdp2"}, {"lora_dropout": 0.2}, processes=2),
}


def make_world(folder: Path) -> None:
    """Bases and data: `flamingo`, its parts `lang` and `clip`, `t5`, `a.jsonl`, `pairs.jsonl`."""
    tokenizer = tiny_tokenizer()
    model, processor = colour_flamingo(tokenizer), processor_of(tokenizer)
    model.save_pretrained(folder / "flamingo")
    processor.save_pretrained(folder / "flamingo")
    _save_parts(model, processor, folder)
    torch.manual_seed(0)
    t5(vocab_size=259).save_pretrained(folder / "t5")
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder / "t5")
    for name, count in (("a", 12), ("b", 5), ("val", 2)):
        lines = []
        for number in range(count):
            colour = list(COLOURS)[number % 3]
            picture = Image.new("RGB", (16, 16), COLOURS[colour])
            picture.putpixel((number, 0), tuple(name.encode().ljust(3))[:3])
            picture.save(folder / f"{name}{number}.png")
            said = [("user", "<image>colour?"), ("assistant", colour)]
            messages = [{"role": role, "content": text} for role, text in said]
            lines.append({"messages": messages, "images": [f"{name}{number}.png"]})
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, count in (("pairs", 12), ("val-pairs", 2)):
        pairs = [{"source": f"say {n}", "target": "yes " * (n % 3 + 1)} for n in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, pairs)))


def _save_parts(model: Any, processor: Any, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    lang = AutoModelForCausalLM.from_config(model.config.text_config)
    state = model.lang_encoder.state_dict()
    lang.load_state_dict(
        {n.replace(".decoder_layer", ""): t for n, t in state.items() if "gated" not in n}
    )
    lang.save_pretrained(folder / "lang")
    processor.tokenizer.save_pretrained(folder / "lang")
    model.vision_encoder.save_pretrained(folder / "clip")
    processor.image_processor.save_pretrained(folder / "clip")


class Killed:
    """Runs of one kind in a folder of bases and data, from `make_world`.

    Args:
        kind: of run.
        world: bases and data.
        folder: for the runs.
    """

    def __init__(self, kind: Kind, world: Path, folder: Path):
        self._kind, self._world, self._folder, self._begun = kind, world, folder, 0
        folder.mkdir()
        self._whole = folder / "whole"
        self._reference = self.start("whole")
        assert not self._reference.killed

    def start(self, name: str, kill: Kill | None = None) -> Ended:
        """Start or go on with a run."""
        kind, run = self._kind, self._folder / name
        config = self._config(name)

        def work():
            if kind.scaled:
                scale_gradients()
            flan_t5(config) if kind.text else finetune(config)

        return start(work, run, self._folder / f"{name}.log", kill, kind.processes)

    def _config(self, name: str) -> Any:
        kind, world = self._kind, self._world
        place = {"output_dir": str(self._folder), "run_name": name, "resume": "auto"}
        if kind.text:
            data = {"data": str(world / "pairs.jsonl"), "val_data": str(world / "val-pairs.jsonl")}
            tuning = TextTuningConfig(**kind.tuning)
            given = {**PLAIN, **place, **data, "model": str(world / "t5"), **kind.settings}
            return FlanT5Config(**given, tuning_config=tuning)
        own = {"model": str(world / "flamingo"), "data": str(world / "a.jsonl")}
        if kind.parts:
            own |= {"model": "embedded", "cross_attn_every_n_layers": 1}
            own |= {"lang_encoder": str(world / "lang"), "vision_encoder": str(world / "clip")}
        if kind.mixed:
            shares = (("a", 2.0), ("b", 1.0))
            own["data"] = [{"path": str(world / f"{n}.jsonl"), "weight": w} for n, w in shares]
        if kind.cached:
            own["cache_features"] = str(self._folder / f"{name}.features")
        given = {**PLAIN, **place, **own, "val_data": str(world / "val.jsonl"), **kind.settings}
        tuning = TuningConfig(**{"train_answer_tokens": "false", **kind.tuning})
        return FinetuneConfig(**given, tuning_config=tuning)

    def kill(self, moments: list[str], chance: random.Random) -> Iterator[list[str]]:
        """Kill runs at these moments and start them again; gives those that each run survived.

        Raises:
            AssertionError: something is half, lost, left over or other than without a kill.
        """
        waiting = list(moments)
        while waiting:
            self._begun, survived = self._begun + 1, []
            # As long as "whole": an adapter of a new base says where that lies.
            name = f"r-{self._begun:03d}"
            while waiting:
                drawn = draw(waiting[0], self._reference.events, self._reference.seconds, chance)
                # One that comes to its end before is told so by the next start; another is begun.
                if not self.start(name, drawn).killed:
                    break
                self._check_whole(self._folder / name, drawn)
                survived.append(waiting.pop(0))
            assert not self.start(name).killed
            self._check_ended(name, survived)
            yield survived

    def _check_whole(self, run: Path, kill: Kill) -> None:
        """Whatever bears its name is whole."""
        for path in run.glob("*.json"):
            json.loads(path.read_text())
        if (run / "config.yaml").exists():
            assert yaml.safe_load((run / "config.yaml").read_text())["recipe"]
        for checkpoint in run.glob("checkpoints/step-*"):
            assert (checkpoint / MANIFEST).exists() and not damage_of(checkpoint), kill
        for adapter in [*run.glob("adapter"), *run.glob("checkpoints/step-*/adapter")]:
            assert load_file(adapter / "adapter_model.safetensors"), kill
            json.loads((adapter / "adapter_config.json").read_text())
        if (run / "base").exists():
            assert load_file(run / "base" / "model.safetensors"), kill
            json.loads((run / "base" / "config.json").read_text())
        for path in [*run.glob("pictures/*.png"), *run.glob("loss.png")]:
            with Image.open(path) as picture:
                picture.load()
        if (run / "report.html").exists():
            assert (run / "report.html").read_text().rstrip().endswith("</html>"), kill
        if (run / "metrics.jsonl").exists():
            # Half a line may be left of the one that was being added.
            for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]:
                json.loads(line)

    def _check_ended(self, name: str, moments: list[str]) -> None:
        """The run is bit by bit the one that nobody killed, and nothing else is left of it."""
        run, whole = self._folder / name, self._whole
        adapter = Path("adapter") / "adapter_model.safetensors"
        assert (run / adapter).read_bytes() == (whole / adapter).read_bytes(), moments
        assert metrics_of(run) == metrics_of(whole), moments
        assert _figures(run / "report.json") == _figures(whole / "report.json"), moments
        assert (run / "answers.json").read_bytes() == (whole / "answers.json").read_bytes()
        files, expected = everything(run), everything(whole)
        assert not [path for path in files if LEFT_OVER.fullmatch(Path(path).name)], files
        # Of a run that was killed while the last checkpoint put an end to an older one, that stays.
        assert expected - files == set(), moments
        assert all(re.match(r"checkpoints/step-", path) for path in files - expected), moments


def everything(run: Path) -> set[str]:
    """The files and folders of a run."""
    return {path.relative_to(run).as_posix() for path in run.rglob("*")}


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what a clock says."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [_unmeasured(json.loads(line)) for line in lines]


def _figures(path: Path) -> Any:
    # Of a new base it says where it lies.
    return _unmeasured(json.loads(path.read_text().replace(str(path.parent), "")))


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unmeasured(item) for key, item in value.items() if key not in MEASURED}
    return value


def moments_of(number: int, kills: int) -> list[str]:
    """Moments for so many kills of the kind of this number: in order, so that each is reached."""
    chosen = [MOMENTS[(number * 4 + k) % len(MOMENTS)] for k in range(kills)]
    rounds = [chosen[k : k + len(MOMENTS)] for k in range(0, kills, len(MOMENTS))]
    return [moment for part in rounds for moment in sorted(part, key=MOMENTS.index)]


def scale_gradients() -> None:
    """From now on runs of this process scale their gradients, as with fp16 on a GPU.

    The model computes in float32. The first scale is too large for it, so steps are skipped.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from tuninglab.recipes import common
    from tuninglab.training import hardware

    class Scaling(Accelerator):
        mixed_precision = "fp16"  # only read by what unscales the gradients

    def scaling(precision):
        AcceleratorState._shared_state = {}
        accelerator = Scaling(cpu=True)
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=2)
        return accelerator

    hardware.accelerator_in = scaling
    common.precision_of = lambda accelerator: "fp32"

"""The recipe behind `tuninglab convert`: a released checkpoint becomes a model, or back."""

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers.utils import logging

from tuninglab.adapters.saving import write_adapter
from tuninglab.config import ConvertConfig
from tuninglab.console import Choices, program, say
from tuninglab.conversion.building import flamingo_of
from tuninglab.conversion.fitting import told
from tuninglab.conversion.report import report_of, unexplained, write_summary
from tuninglab.conversion.writing import write_open_flamingo
from tuninglab.disk import whole_folder
from tuninglab.errors import UserError
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.formats import multimodal_gpt, open_flamingo, otter
from tuninglab.models.formats.filling import misfits
from tuninglab.models.formats.layout import Checkpoint, Layout
from tuninglab.models.formats.reading import read_checkpoint
from tuninglab.models.hub import resolve
from tuninglab.models.parts import read_config
from tuninglab.run_folder.named_model import shipped

REPORT_NAME = "conversion.json"
DESCRIBE: dict[str, Callable[[Checkpoint], Layout]] = {
    "open_flamingo": open_flamingo.describe,
    "otter": otter.describe,
    "multimodal_gpt": multimodal_gpt.describe,
}
# What a directory that may be replaced holds: anything else is kept, whatever --overwrite says.
OURS = (REPORT_NAME, "config.json", "adapter_config.json")
# Files of a usual size on the hub.
SHARD = "5GB"


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Convert as the settings say; returns the report, which lies in the result too.

    Raises:
        UserError: a file is not what it was taken for, parts do not belong together, or the place
            to write is taken.
        WorkError: the disk is full.
    """
    if config.to is not None:
        return _back(config)
    names = ("lang_encoder", "vision_encoder", "tokenizer", "model")
    parts = {name: getattr(config, name) for name in names}
    out = None if config.inspect else Path(str(config.out)).expanduser()
    if out is not None:
        _check_place(out, config.overwrite, {**parts, "checkpoint": config.checkpoint})
    checkpoint = read_checkpoint(str(config.checkpoint))
    for note in checkpoint.notes:
        say(note)
    kind = config.from_ or _detect(checkpoint)
    with checkpoint.named():
        layout = DESCRIBE[kind](checkpoint)
    if config.media_mode is not None:
        layout.media_mode, layout.media_reason = config.media_mode, "--media_mode says so"
    report = report_of(checkpoint, layout)
    if out is None:
        return report
    _refuse_unexplained(layout, checkpoint)
    choices = Choices()
    choices.add("media_mode", layout.media_mode, layout.media_reason)
    if kind == "multimodal_gpt":
        save = _adapter_of(checkpoint, layout, config, choices)
    else:
        save = _model_of(checkpoint, layout, config, choices)
    with whole_folder(out) as beside:
        save(beside)
        report |= {"out": str(out), "choices": choices.made, "parts": parts}
        text = json.dumps(report, ensure_ascii=False, indent=1)
        (beside / REPORT_NAME).write_text(text + "\n", encoding="utf-8")
    say(write_summary(report, out))
    return report


def _detect(checkpoint: Checkpoint) -> str:
    """Whose checkpoint it is, by names that no other format has."""
    names = list(checkpoint.tensors)
    settings = checkpoint.extras.get("config")
    if isinstance(settings, dict) and "cross_attn_dim_head" in settings:
        raise UserError(
            f"{checkpoint.path} is a tuninglab model already. To write it for open_flamingo: "
            f"{program()} convert --to open_flamingo --model {shlex.quote(str(checkpoint.path))} "
            "--out checkpoint.pt"
        )
    if any(".feed_forward." in name for name in names):
        return "otter"
    if any(".lora_A." in name for name in names):
        return "multimodal_gpt"
    if any(n.startswith("perceiver.") or ".gated_cross_attn_layer" in n for n in names):
        return "open_flamingo"
    raise UserError(
        f"{checkpoint.path} holds {len(names)} tensors, but is no checkpoint of OpenFlamingo, "
        "Otter or Multimodal-GPT: none is of a Perceiver, a gated block or a LoRA. Its first keys: "
        f"{', '.join(names[:4])}"
    )


def _refuse_unexplained(layout: Layout, checkpoint: Checkpoint) -> None:
    keys = unexplained(layout)
    if keys:
        listed = told([f"{key.fate}: {key.name} ({key.reason})" for key in keys])
        raise UserError(
            f"{checkpoint.path}: {len(keys)} keys have no explanation: {listed}. A model "
            f"made without them would answer wrongly. `{program()} convert --inspect --checkpoint "
            f"{shlex.quote(str(checkpoint.path))}` shows all keys"
        )


def _check_place(out: Path, overwrite: bool, read: Mapping[str, str | None]) -> None:
    """Refuse a place to write that is taken, or where something lies that is read."""
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--out {out} exists; give another place, or --overwrite to replace it")
    if not any((out / name).is_file() for name in OURS):
        raise UserError(
            f"--out {out} is no model or adapter (it has none of {', '.join(OURS)}), and "
            "--overwrite replaces nothing else. Give another place"
        )
    for name, source in read.items():
        place = None if source is None else Path(source).expanduser().resolve()
        if place is not None and place.exists() and place.is_relative_to(out.resolve()):
            raise UserError(f"--out {out} holds --{name}, which is read: give another place")


def _model_of(
    checkpoint: Checkpoint, layout: Layout, config: ConvertConfig, choices: Choices
) -> Callable[[Path], None]:
    """The model of a checkpoint, as what writes it into a folder."""
    model, processor = flamingo_of(checkpoint, layout, config, choices)
    # A bar for a few seconds would stand between the notes.
    logging.disable_progress_bar()

    def save(folder: Path) -> None:
        model.save_pretrained(folder, max_shard_size=SHARD)
        processor.save_pretrained(folder)

    return save


def _adapter_of(
    checkpoint: Checkpoint, layout: Layout, config: ConvertConfig, choices: Choices
) -> Callable[[Path], None]:
    """The adapter of a LoRA checkpoint, likewise."""
    for name in ("lang_encoder", "vision_encoder", "tokenizer", "dtype"):
        if getattr(config, name) is not None:
            raise UserError(
                f"--{name} is of no use with a LoRA: convert the Flamingo it belongs to first, and "
                "name that as --model"
            )
    with checkpoint.named():
        lora, tensors = multimodal_gpt.adapter(checkpoint, layout)
        settings = LoraConfig(**lora)
    choices.add("lora_alpha", str(lora["lora_alpha"]), multimodal_gpt.alpha_reason(checkpoint))
    base = model = config.model
    if model is None:
        choices.add("base model", "not named", "no --model was given; chat and finetune need it")
    else:
        base = model if model == "embedded" else str(Path(model).expanduser().resolve())
        _check_adapter(lora["r"], model, checkpoint, layout)
    settings.base_model_name_or_path = base
    return lambda folder: write_adapter(folder, settings, tensors, layout.media_mode)


def _flamingo_config(name: str) -> tuple[FlamingoConfig, Path]:
    where, local = resolve(shipped(name), "model")
    if not local:
        raise UserError(f"model: {name} is a hub id; download it (hf download) and name its folder")
    found = read_config(where, local, "model")
    if not isinstance(found, FlamingoConfig):
        raise UserError(f"model: {where} holds a {found.model_type!r} model, not a Flamingo")
    return found, Path(where)


def _check_adapter(rank: int, model: str, checkpoint: Checkpoint, layout: Layout) -> None:
    """Refuse a LoRA that does not fit the Flamingo it shall belong to, layer by layer."""
    with torch.device("meta"):
        skeleton = FlamingoForConditionalGeneration(_flamingo_config(model)[0])
    expected = {}
    for name, module in skeleton.named_modules():
        if isinstance(module, nn.Linear):
            lora = f"{multimodal_gpt.OUTER}{name}.lora_"
            expected[f"{lora}A.weight"] = module.weight.new_empty(rank, module.in_features)
            expected[f"{lora}B.weight"] = module.weight.new_empty(module.out_features, rank)
    keys = [key for key in layout.keys if ".lora_" in key.name]
    problems = misfits(expected, checkpoint.tensors, keys)
    if problems:
        raise UserError(
            f"--model {model} is not the Flamingo of this LoRA: {'; '.join(problems[:4])}. It is "
            f"for a {layout.family} {layout.width} wide; convert OpenFlamingo-9B (v1) for "
            "Multimodal-GPT's"
        )


def _back(config: ConvertConfig) -> dict[str, Any]:
    """Write a Flamingo as a checkpoint of OpenFlamingo."""
    out = Path(str(config.out)).expanduser()
    if out.is_dir() or out.suffix not in (".pt", ".pth", ".bin"):
        out = out / "checkpoint.pt"
    if out.exists() and not config.overwrite:
        raise UserError(f"--out {out} exists; give another place, or --overwrite to replace it")
    flamingo, folder = _flamingo_config(str(config.model or config.checkpoint))
    tensors = read_checkpoint(folder).tensors
    out.parent.mkdir(parents=True, exist_ok=True)
    report = write_open_flamingo(flamingo, tensors, out)
    for note in report["notes"]:
        say(note)
    say(f"{folder} -> {out}: {len(report['keys'])} keys, {report['parameters']:,} parameters")
    return report

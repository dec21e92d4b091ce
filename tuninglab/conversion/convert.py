"""The recipe behind `tuninglab convert`: a released checkpoint becomes a model, or back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from tuninglab.adapters.saving import write_adapter
from tuninglab.config import ConvertConfig
from tuninglab.console import Choices, say
from tuninglab.conversion.building import Sources, flamingo_of
from tuninglab.conversion.report import report_of, unexplained, write_summary
from tuninglab.conversion.writing import write_open_flamingo
from tuninglab.disk import whole_folder
from tuninglab.embedded import base_directory
from tuninglab.errors import UserError
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.formats import multimodal_gpt, open_flamingo, otter
from tuninglab.models.formats.layout import Checkpoint, Layout
from tuninglab.models.formats.reading import read_checkpoint
from tuninglab.models.parts import read_config, resolve

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
    out = None if config.inspect else _free_place(Path(str(config.out)).expanduser(), config)
    checkpoint = read_checkpoint(str(config.checkpoint))
    for note in checkpoint.notes:
        say(note)
    kind = config.from_ or _detect(checkpoint)
    layout = DESCRIBE[kind](checkpoint)
    if config.media_mode is not None:
        layout.media_mode, layout.media_reason = config.media_mode, "--media_mode says so"
    report = report_of(checkpoint, layout)
    if out is None:
        return report
    _refuse_unexplained(layout, checkpoint)
    choices = Choices()
    choices.add("media_mode", layout.media_mode, layout.media_reason)
    write = _write_adapter if kind == "multimodal_gpt" else _write_model
    write(config, checkpoint, layout, out, report, choices)
    say(write_summary(report, out))
    return report


def _detect(checkpoint: Checkpoint) -> str:
    """Whose checkpoint it is, by names that no other format has."""
    names = list(checkpoint.tensors)
    settings = checkpoint.extras.get("config")
    if isinstance(settings, dict) and "cross_attn_dim_head" in settings:
        raise UserError(
            f"{checkpoint.path} is a tuninglab model already. To write it for open_flamingo: "
            f"tuninglab convert --to open_flamingo --model {checkpoint.path} --out checkpoint.pt"
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
        listed = "; ".join(f"{key.fate}: {key.name} ({key.reason})" for key in keys[:8])
        rest = f"; and {len(keys) - 8} more" if len(keys) > 8 else ""
        raise UserError(
            f"{checkpoint.path}: {len(keys)} keys have no explanation: {listed}{rest}. A model "
            "made without them would answer wrongly. `tuninglab convert --inspect --checkpoint "
            f"{checkpoint.path}` shows all keys"
        )


def _free_place(out: Path, config: ConvertConfig) -> Path:
    """The place to write, refused if it is taken or if what is read lies in it."""
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return out
    if not config.overwrite:
        raise UserError(f"--out {out} exists; give another place, or --overwrite to replace it")
    if not any((out / name).is_file() for name in OURS):
        raise UserError(
            f"--out {out} is no model or adapter (it has none of {', '.join(OURS)}), and "
            "--overwrite replaces nothing else. Give another place"
        )
    names = ("checkpoint", "lang_encoder", "vision_encoder", "tokenizer", "model")
    for name in names:
        source = getattr(config, name)
        place = None if source is None else Path(source).expanduser().resolve()
        if place is not None and place.exists() and place.is_relative_to(out.resolve()):
            raise UserError(f"--out {out} holds --{name}, which is read: give another place")
    return out


def _write_model(
    config: ConvertConfig,
    checkpoint: Checkpoint,
    layout: Layout,
    out: Path,
    report: dict[str, Any],
    choices: Choices,
) -> None:
    sources = Sources(
        config.lang_encoder,
        config.vision_encoder,
        config.tokenizer,
        config.dtype,
        config.trust_remote_code,
    )
    model, processor = flamingo_of(checkpoint, layout, sources, choices)
    # A bar for a few seconds would stand between the notes.
    logging.disable_progress_bar()
    with whole_folder(out) as beside:
        model.save_pretrained(beside, max_shard_size=SHARD)
        processor.save_pretrained(beside)
        _complete(report, config, choices, out, beside)


def _complete(
    report: dict[str, Any], config: ConvertConfig, choices: Choices, out: Path, beside: Path
) -> None:
    """Add what was done to the report, and put it beside the weights."""
    report["out"] = str(out)
    report["choices"] = choices.made
    names = ("lang_encoder", "vision_encoder", "tokenizer", "model")
    report["parts"] = {name: getattr(config, name) for name in names}
    text = json.dumps(report, ensure_ascii=False, indent=1)
    (beside / REPORT_NAME).write_text(text + "\n", encoding="utf-8")


def _write_adapter(
    config: ConvertConfig,
    checkpoint: Checkpoint,
    layout: Layout,
    out: Path,
    report: dict[str, Any],
    choices: Choices,
) -> None:
    for name in ("lang_encoder", "vision_encoder", "tokenizer", "dtype"):
        if getattr(config, name) is not None:
            raise UserError(
                f"--{name} is of no use with a LoRA: convert the Flamingo it belongs to first, and "
                "name that as --model"
            )
    settings, tensors = multimodal_gpt.adapter(checkpoint, layout)
    reason = multimodal_gpt.alpha_reason(checkpoint)
    choices.add("lora_alpha", str(settings["lora_alpha"]), reason)
    base = None
    if config.model is not None:
        embedded = config.model == "embedded"
        base = "embedded" if embedded else str(Path(config.model).expanduser().resolve())
        _check_adapter(tensors, config.model, layout)
    else:
        choices.add("base model", "not named", "no --model was given; chat and finetune need it")
    with whole_folder(out) as beside:
        write_adapter(
            beside, {**settings, "base_model_name_or_path": base}, tensors, layout.media_mode
        )
        _complete(report, config, choices, out, beside)


def _flamingo_config(name: str) -> tuple[FlamingoConfig, Path]:
    where, local = resolve(base_directory() if name == "embedded" else name, "model")
    if not local:
        raise UserError(f"model: {name} is a hub id; download it (hf download) and name its folder")
    config = read_config(where, local, "model")
    if not isinstance(config, FlamingoConfig):
        raise UserError(f"model: {where} holds a {config.model_type!r} model, not a Flamingo")
    return config, Path(where)


def _check_adapter(tensors: dict[str, torch.Tensor], model: str, layout: Layout) -> None:
    """Refuse a LoRA that does not fit the Flamingo it shall belong to, layer by layer."""
    config, _ = _flamingo_config(model)
    with torch.device("meta"):
        skeleton = FlamingoForConditionalGeneration(config)
    linear = {n: m.weight.shape for n, m in skeleton.named_modules() if isinstance(m, nn.Linear)}
    problems = []
    for name, tensor in tensors.items():
        module, _, side = name.removeprefix("base_model.model.").partition(".lora_")
        if side:
            shape = linear.get(module)
            # lora_A is (R, inputs), lora_B (outputs, R); a weight is (outputs, inputs).
            found = tensor.shape[1] if side[0] == "A" else tensor.shape[0]
            if shape is None:
                problems.append(f"it has no {module}")
            elif found != shape[1 if side[0] == "A" else 0]:
                problems.append(f"{module} is {tuple(shape)}, the LoRA for {found}")
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

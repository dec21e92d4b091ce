"""The verb `export`: a run to carry away, checked, with a model card."""

import gc
import json
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from tuninglab.adapters.base_mark import MARK_KEY, mark_of, weights_folder
from tuninglab.adapters.saving import WEIGHTS_NAME
from tuninglab.adapters.shipped_base import SETTINGS_NAME
from tuninglab.config import ExportConfig
from tuninglab.console import Choices, program, say
from tuninglab.conversion.card import Exported, write_card
from tuninglab.conversion.convert import SHARD
from tuninglab.conversion.merging import merged, tuned_model
from tuninglab.conversion.open_flamingo_folder import read_parts, write_parts
from tuninglab.conversion.pushing import check_push, push
from tuninglab.conversion.trying import Tried, compared, prompts_of, refuse_change, told, tried
from tuninglab.data.sample import Sample
from tuninglab.disk import whole_folder
from tuninglab.errors import UserError
from tuninglab.models.build import load_flamingo
from tuninglab.models.parts import DTYPES
from tuninglab.run_folder.named_model import (
    ADAPTER_CONFIG,
    LARGEST_CONFIG,
    NamedModel,
    find_model,
)
from tuninglab.training.hardware import best_device
from tuninglab.untrusted import read_json

BASE = "base"


class Written(NamedTuple):
    """What was written, and how the model that it was made of answers.

    Attributes:
        before: its prompts, answers and logits.
        computed_in: its number format.
        dtype: that of the weights written; of an adapter, of the base that it was tried on.
    """

    before: Tried
    computed_in: torch.dtype
    dtype: torch.dtype


def export(config: ExportConfig) -> dict[str, Any]:
    """Export as the settings say; returns what was written and checked.

    Raises:
        UserError: there is nothing tuned, the place is taken, or the hub cannot be pushed to.
        WorkError: what was written answers otherwise, and is gone again; the disk is full; or the
            hub did not take it.
    """
    out = Path(str(config.out)).expanduser()
    # A dangling link is something, too.
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} exists. Nothing is written over: give another place")
    named = find_model(config.run)
    if named.adapter is None:
        raise UserError(
            f"{config.run} is neither a run nor an adapter: nothing in it was tuned here, and it "
            "can be copied as it is. Give a run folder, e.g. runs/demo"
        )
    if config.push_to_hub is not None:
        check_push(config.push_to_hub)
    choices = Choices()
    device = best_device(choices, config.threads)
    # A bar for a few seconds would stand between the notes.
    logging.disable_progress_bar()
    samples = prompts_of(named.run, config.check)
    with whole_folder(out) as beside:
        written = _write(config, named, beside, samples, device, choices)
        # The models of the tuned one refer to each other in circles.
        gc.collect()
        after = _tried_again(config, beside, samples, device, written.before)
        check = compared(written.before, after, (written.computed_in, written.dtype))
        say(told(check))
        refuse_change(check, out, written.dtype != torch.float32)
        floats = str(written.dtype).removeprefix("torch.")
        write_card(beside, Exported(config, named, out.name, floats, check))
        size = sum(path.stat().st_size for path in beside.rglob("*") if path.is_file())
    say(f"{named.tuned} -> {out}: {size:,} bytes.")
    if config.push_to_hub is not None:
        push(out, config.push_to_hub, config.private)
    elif config.to == "hf":
        say(f"Talk to it: {program()} chat {shlex.quote(str(out))}")
    return {
        "run": config.run,
        "base": named.base,
        "out": str(out),
        "kind": _kind(config),
        "dtype": floats,
        "bytes": size,
        "check": check,
        "choices": choices.made,
        "pushed_to": config.push_to_hub,
    }


def _kind(config: ExportConfig) -> str:
    if config.to == "open_flamingo":
        return config.to
    return "model" if config.merge else "adapter"


def _write(
    config: ExportConfig,
    named: NamedModel,
    folder: Path,
    samples: list[Sample],
    device: torch.device,
    choices: Choices,
) -> Written:
    """Try the tuned model, then write it; what it took of memory is free afterwards."""
    tuned, processor = tuned_model(named, config.dtype, device, choices)
    computed_in = tuned.dtype
    before = tried(tuned, processor, samples)
    if not config.merge:
        base: Any = tuned.get_base_model()
        _write_adapter(named, folder, base.config.media_mode)
        return Written(before, computed_in, computed_in)
    model = merged(tuned, DTYPES[config.dtype] if config.dtype else None)
    if config.to == "open_flamingo":
        for note in write_parts(model, processor, folder):
            say(note)
    else:
        model.save_pretrained(folder, max_shard_size=SHARD)
        processor.save_pretrained(folder)
    return Written(before, computed_in, model.dtype)


def _tried_again(
    config: ExportConfig, folder: Path, samples: list[Sample], device: torch.device, before: Tried
) -> Tried:
    """The same prompts put to what lies in a folder."""
    model: Any
    if config.to == "open_flamingo":
        model, processor = read_parts(folder)
    elif config.merge:
        model, processor = load_flamingo(folder)
    else:
        model, processor = tuned_model(find_model(str(folder)), None, device, Choices())
    return tried(model.to(device), processor, samples, before)


def _write_adapter(named: NamedModel, folder: Path, media_mode: str) -> None:
    """An adapter with the name and the mark of its base, and the base if nobody else has it."""
    adapter: Any = named.adapter
    base, carried = _base_of(named)
    shutil.copyfile(adapter / WEIGHTS_NAME, folder / WEIGHTS_NAME)
    lora = read_json(adapter / ADAPTER_CONFIG, LARGEST_CONFIG, "adapter")
    lora["base_model_name_or_path"] = base
    _write_json(folder / ADAPTER_CONFIG, lora)
    kept = adapter / SETTINGS_NAME
    # One that PEFT alone saved says nothing; it is exported with what it is opened with.
    said = {"media_mode": media_mode}
    said |= read_json(kept, LARGEST_CONFIG, "adapter") if kept.is_file() else {}
    weights = weights_folder(named.base)
    said |= {} if weights is None else {MARK_KEY: mark_of(weights)}
    _write_json(folder / SETTINGS_NAME, said)
    if carried is not None:
        shutil.copytree(carried, folder / BASE)


def _base_of(named: NamedModel) -> tuple[str, Path | None]:
    """What an adapter that is elsewhere shall call its base, and the base if it must come along."""
    path, adapter = Path(named.base).expanduser(), named.adapter
    # The shipped one is meant, whatever lies here.
    if named.base == "embedded" or not path.is_dir() or adapter is None:
        return named.base, None
    place = path.resolve()
    # A bridge that a run drew, or the base that an adapter brought: there is no other copy.
    owners = [folder.resolve() for folder in (named.run, adapter) if folder is not None]
    if any(place.is_relative_to(owner) for owner in owners):
        return BASE, place
    return str(place), None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

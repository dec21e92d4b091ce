"""The verb `tree`: the module tree of a model that the user named, with or without LoRA."""

import difflib
import json
import os
import sys
from typing import Any

import torch
from torch import nn

from tuninglab.adapters.lora import tune
from tuninglab.adapters.places import matching_modules
from tuninglab.config import TreeConfig
from tuninglab.config.tuning import LoraTuning, TextTuningConfig, TuningConfig
from tuninglab.console import Choices, say
from tuninglab.errors import UserError
from tuninglab.inspection.meta_model import meta_model
from tuninglab.inspection.module_tree import (
    Line,
    branches_below,
    coloured,
    own_parameters,
    plain,
    tree_lines,
)
from tuninglab.inspection.tree_stats import Census, columns, lora_patterns, totals, tree_json
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.named_parts import SCOPE
from tuninglab.models.text_to_text import TextToText


def tree_of(config: TreeConfig) -> str:
    """The tree that the user asked for, as text or as JSON; what was decided is said besides.

    Raises:
        UserError: there is no such model or part, or LoRA finds no layer.
    """
    whole = meta_model(config.model)
    root = _part(whole, config.part)
    if config.lora and hasattr(whole, "peft_config"):
        say(f"{config.model} has LoRA already; it is shown as it is")
    elif config.lora:
        # The source document printed the language model wrapped on its own.
        alone = config.part == SCOPE and isinstance(whole, FlamingoForConditionalGeneration)
        whole = _with_lora(whole, config.lora_target_modules, alone)
        root = whole if alone else _part(whole, config.part)
    census = Census(whole, lora_patterns(whole))
    if config.json:
        tree = tree_json(root, branches_below(root), census)
        named = {"model": config.model, "part": config.part}
        return json.dumps({**named, **tree}, ensure_ascii=False, indent=2)
    if own_parameters(root):
        own = ", ".join(f"{name}:{list(value.shape)}" for name, value in own_parameters(root))
        # The rules of the tree keep them out of it.
        say(f"root ({type(root).__name__}) itself holds {own}")
    return _text(root, census if config.stats else None)


def _text(root: nn.Module, census: Census | None) -> str:
    drawn = [([("", "root")], None), *tree_lines(branches_below(root))]
    lines: list[Line] = [line for line, _ in drawn]
    if census is not None:
        cells = [columns(census.of(branch.modules if branch else (root,))) for _, branch in drawn]
        lines = _beside(lines, cells)
        lines.append([("", totals(census.of((root,))))])
    write = coloured if _shows_colours() else plain
    return "\n".join(write(line) for line in lines)


def _beside(lines: list[Line], cells: list[tuple[str, ...]]) -> list[Line]:
    """Cells in columns to the right of the longest line, cut nowhere."""
    widest = max(len(plain(line)) for line in lines)
    widths = [max(map(len, column)) for column in zip(*filter(None, cells), strict=True)]
    beside = []
    for line, row in zip(lines, cells, strict=True):
        gap = " " * (widest - len(plain(line)))
        # Figures are flush right, words left.
        text = "  ".join(
            f"{cell:>{width}}" if column in (0, 3) else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        beside.append([*line, ("stats", f"{gap}  {text}".rstrip())] if row else line)
    return beside


def _shows_colours() -> bool:
    # https://no-color.org: set and not empty.
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and sys.stdout.isatty()


def _part(model: Any, name: str | None) -> nn.Module:
    if name is None:
        return model
    # Parts are named as in the model itself, with PEFT's wrapper or without it.
    whole = model.get_base_model() if hasattr(model, "peft_config") else model
    parts = dict(whole.named_modules())
    if name and name in parts:
        return parts[name]
    near = difflib.get_close_matches(name, parts, n=2)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    top = ", ".join(name for name, _ in whole.named_children())
    raise UserError(f"--part is {name!r}; there is no such module.{hint} Parts: {top}.")


def _with_lora(model: Any, patterns: list[str] | None, alone: bool) -> Any:
    """The model under LoRA as tuning puts it, or the language model of a Flamingo alone."""
    part, scope = model, ""
    tuning: LoraTuning
    if isinstance(model, TextToText):
        tuning, reason = TextTuningConfig(), "as the recipe for T5 has it"
    elif alone:
        # Gates train besides in a Flamingo; the document's tree shows LoRA only.
        part, tuning, reason = model.lang_encoder, TuningConfig(train_gates=False), f"{SCOPE} alone"
    elif isinstance(model, FlamingoForConditionalGeneration):
        scope, tuning, reason = SCOPE, TuningConfig(), "as tuning has it: gates train besides"
    else:
        tuning, reason = LoraTuning(), "those of the source document that this text model has"
        hits = [name for name in tuning.lora_target_modules if matching_modules(model, name)]
        # Without any, tuning's own message lists what there is.
        tuning.lora_target_modules = hits or tuning.lora_target_modules
    if patterns is not None:
        tuning.lora_target_modules, reason = patterns, "as asked"
    # On the meta device the new matrices take neither memory nor the time to fill them.
    with torch.device("meta"):
        tuned = tune(part, tuning, scope=scope)
    Choices().add(f"LoRA of rank {tuning.r}", ", ".join(tuning.lora_target_modules), reason)
    return tuned

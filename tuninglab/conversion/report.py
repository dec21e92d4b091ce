"""What a conversion found and did: for programs as a dict, for people as a page of lines."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tuninglab.models.formats.layout import Checkpoint, Key, Layout

FATES = ("used", "dropped", "missing", "unexpected")
SHOWN_LAYERS = 4


def report_of(checkpoint: Checkpoint, layout: Layout) -> dict[str, Any]:
    """All that is known of a checkpoint, with every key and the groups of alike keys."""
    keys = [_key(checkpoint, key) for key in layout.keys]
    return {
        "checkpoint": checkpoint.path,
        "format": layout.format,
        "released": layout.released,
        "language_model": {"family": layout.family, "width": layout.width, "rows": layout.rows},
        "vision_width": layout.media_width,
        "gated_layers": layout.gated_layers,
        "interval": layout.interval,
        "bridge": layout.perceiver,
        "media_mode": layout.media_mode,
        "media_reason": layout.media_reason,
        "facts": layout.facts,
        "notes": checkpoint.notes,
        "extras": sorted(name for name in checkpoint.extras if not name.startswith("_")),
        # A fused weight fills three: it is one key of the file.
        "counts": {fate: len({k.name for k in layout.with_fate(fate)}) for fate in FATES},
        "groups": _groups(keys),
        "keys": keys,
    }


def unexplained(layout: Layout) -> list[Key]:
    """The keys that forbid a conversion: what is missing, and what nobody knows."""
    return [*layout.with_fate("missing"), *layout.with_fate("unexpected")]


def page(report: dict[str, Any]) -> str:
    """The report for people; one line a kind of key, `*` for the numbers of layers."""
    lang, bridge = report["language_model"], report["bridge"]
    rows = "no token table" if lang["rows"] is None else f"token table of {lang['rows']} rows"
    facts = [
        ("checkpoint", report["checkpoint"]),
        ("format", report["format"]),
        ("released as", report["released"] or "no released model has this shape"),
        ("language model", f"{lang['family']}, {lang['width'] or 'unknown'} wide, {rows}"),
        ("vision tower", f"{report['vision_width'] or 'unknown'} wide"),
        ("gated blocks", _layers(report["gated_layers"], report["interval"])),
        ("bridge", ", ".join(f"{name} {number}" for name, number in bridge.items()) or "none"),
        ("media_mode", f"{report['media_mode']} ({report['media_reason']})"),
        ("keys", ", ".join(f"{count} {fate}" for fate, count in report["counts"].items())),
        ("also in the file", ", ".join(report["extras"]) or "nothing"),
    ]
    lines = [f"{name:<17} {text}" for name, text in facts]
    lines += [f"{'':<17} {text}" for text in [*report["facts"], *report["notes"]]]
    lines += ["", *_table(report["groups"])]
    return "\n".join(lines)


def write_summary(report: dict[str, Any], out: Path) -> str:
    """What was written, in a few lines."""
    counts, lang = report["counts"], report["language_model"]
    return (
        f"{report['format']} -> {out}: {lang['family']} {lang['width']} wide, "
        f"{_layers(report['gated_layers'], report['interval'])}; {counts['used']} keys used, "
        f"{counts['dropped']} dropped with a reason (all in {out.name}/conversion.json)"
    )


def _key(checkpoint: Checkpoint, key: Key) -> dict[str, Any]:
    tensor = checkpoint.tensors.get(key.name)
    shape = None if tensor is None else list(tensor.shape)
    dtype = None if tensor is None else str(tensor.dtype).removeprefix("torch.")
    return {**vars(key), "shape": shape, "dtype": dtype}


def _groups(keys: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keys that differ in the number of their layer only, with their count."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for key in keys:
        # The number of a layer stands between a list's name and the rest; ff.1 keeps its number.
        kind, target = _starred(key["name"]), _starred(key["target"] or "")
        told = {name: key[name] for name in ("fate", "shape", "reason")}
        told |= {"keys": kind, "target": target if target != kind else "", "count": 0}
        groups.setdefault(tuple(map(str, told.values())), told)["count"] += 1
    return sorted(groups.values(), key=lambda group: FATES.index(group["fate"]))


def _starred(name: str) -> str:
    return re.sub(r"(?<=layers|blocks)\.\d+\.|(?<=\.h)\.\d+\.", ".*.", name)


def _table(groups: list[dict[str, Any]]) -> list[str]:
    lines = []
    for group in groups:
        shape = "" if group["shape"] is None else f" {group['shape']}"
        after = f" -> {group['target']}" if group["target"] else ""
        reason = f": {group['reason']}" if group["reason"] else ""
        lines.append(
            f"{group['fate']:<10} {group['count']:>4} x {group['keys']}{shape}{after}{reason}"
        )
    return lines


def _layers(numbers: list[int], interval: int | None) -> str:
    if not numbers:
        return "no gated blocks"
    shown = ", ".join(map(str, numbers[:SHOWN_LAYERS]))
    if len(numbers) > SHOWN_LAYERS:
        shown += f", ..., {numbers[-1]}"
    return f"{len(numbers)} gated blocks, before layers {shown} (interval {interval})"

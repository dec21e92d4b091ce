"""`--help` of a training, in groups: first what it needs, in the names that the README uses."""

import ast
import inspect
import shutil
import textwrap
from dataclasses import is_dataclass
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tuninglab.config.data import Data
from tuninglab.config.fields import settings_of, spellings

FIRST = "What it needs first"
TUNING = "What is tuned: tuning_config"
REST = "More"
GROUPS = {
    FIRST: (
        *("run_name", "model", "data", "image_root", "val_split", "val_data", "learning_rate"),
        *("lr_scheduler", "batch_size", "workers", "epochs", "max_steps", "enable_int8", "config"),
    ),
    TUNING: (),
    "Starting, stopping, going on": (
        *("lang_encoder", "vision_encoder", "cross_attn_every_n_layers", "embedded_pictures"),
        *("embedded_pairs", "output_dir", "resume", "overwrite", "save_steps", "keep_checkpoints"),
    ),
    "How the data is read": (
        *("format", "columns", "keep_marks", "check", "on_bad_picture", "skip_bad_records", "mix"),
    ),
    "How it learns": (
        *("gradient_accumulation_steps", "warmup_steps", "weight_decay", "max_grad_norm", "seed"),
        *("max_tokens", "prompt"),
    ),
    "Memory and speed": (
        *("threads", "parallel", "precision", "quantization", "memory_savers", "checkpoint_every"),
        *("activation_checkpointing", "cache_features", "group_by_length", "pack_tokens"),
        *("pack_images", "products", "compare", "rounds"),
    ),
    "How it is measured": (
        *("eval_steps", "score_questions", "eval_metric", "keep_best", "patience"),
    ),
    "What it says": ("logging_steps", "track", "print_config", "json", "debug"),
    "For which machine": ("processes", "device", "memory_gib"),
}
WIDTH = 100
INDENT = 6
KINDS: dict[Any, str] = {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false"}


def help_of(prog: str, config_class: Any) -> str:
    """The help text of a verb that trains."""
    tuning = get_type_hints(config_class)["tuning_config"]
    fields = [field.name for field in settings_of(config_class)]
    hidden = {"recipe", "tuning_config", *(n for names in GROUPS.values() for n in names)}
    groups = {**GROUPS, REST: tuple(name for name in fields if name not in hidden)}
    lines = [f"usage: {prog} [FLAGS]", "", *textwrap.wrap(config_class.__doc__, _width())]
    for title, names in groups.items():
        # The words of a group in its own order; a verb has those of its settings.
        found = [name for name in names if name in fields]
        entries = _entries(config_class, found, "")
        if title == TUNING:
            entries = _entries(
                tuning, [field.name for field in settings_of(tuning)], "tuning_config."
            )
        lines += ["", f"{title}:", *entries] if entries else []
    return "\n".join(lines)


def _entries(config_class: Any, names: list[str], prefix: str) -> list[str]:
    hints, texts, lines = get_type_hints(config_class), _texts(config_class), []
    defaults = config_class()
    for name in names:
        if is_dataclass(inner := hints[name]):
            inside = [field.name for field in settings_of(inner)]
            lines += _entries(inner, inside, f"{prefix}{name}.")
            continue
        others = [f"--{alias}" for alias, ours in spellings(config_class).items() if ours == name]
        flags = ", ".join([f"--{prefix}{name}", *others])
        text = " ".join(texts.get(name, "").split())
        default = _shown(getattr(defaults, name))
        text += f" (default: {default})" if default else ""
        lines.append(f"  {flags} {_kind(hints[name])}")
        indent = " " * INDENT
        lines += textwrap.wrap(text, _width(), initial_indent=indent, subsequent_indent=indent)
    return lines


def _width() -> int:
    return min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH)


def _kind(hint: Any) -> str:
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        return "|".join(choices)
    if get_origin(hint) is list:
        return f"{_kind(choices[0])} ..."
    if get_origin(hint) is dict:
        return f"NAME={_kind(choices[1])} ..."
    if hint == Data | None:
        return "PATH ..."
    if not choices:
        return KINDS[hint]
    return "|".join(_kind(choice) for choice in choices if choice is not type(None))


def _shown(default: Any) -> str:
    """A default in the words of the command line; empty for none, of which the text says more."""
    if default is None or default in ([], {}):
        return ""
    if isinstance(default, list):
        return " ".join(default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def _texts(config_class: Any) -> dict[str, str]:
    """The text below each field, which Python itself does not keep."""
    texts = {}
    for base in reversed(config_class.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for field, below in pairwise(getattr(body, "body", [])):
            target = getattr(field, "target", None)
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(target, ast.Name) and isinstance(text, ast.Constant):
                texts[target.id] = str(text.value)
    return texts

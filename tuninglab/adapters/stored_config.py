"""What the adapter_config.json of a saved adapter may say: LoRA, in bounds, for this base."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig

from tuninglab.errors import UserError
from tuninglab.models.expressions import explodes
from tuninglab.run_folder.named_model import ADAPTER_CONFIG, LARGEST_CONFIG
from tuninglab.untrusted import read_json, shown

MOST_RANK = 2**16


def read_adapter_config(directory: Path) -> LoraConfig:
    """The LoRA of a saved adapter, with every value checked that PEFT would take unseen.

    Raises:
        UserError: the file is missing or damaged, the adapter is no LoRA, needs what is not done
            here, or a value is none of LoRA's; the message names the file and the key.
    """
    file = directory / ADAPTER_CONFIG
    said = read_json(file, LARGEST_CONFIG, "adapter")
    if not isinstance(said, Mapping) or not isinstance(said.get("peft_type"), str):
        raise UserError(f"{file} names no peft_type; copy the adapter again")
    if said["peft_type"] != "LORA":
        raise UserError(
            f"{file}: peft_type is {shown(repr(said['peft_type']))}; only LoRA adapters (LORA) are "
            "taken here"
        )
    usual = LoraConfig()
    for key in (field.name for field in fields(LoraConfig)):
        value = said.get(key)
        if value is None or value == getattr(usual, key) or key in LEFT_TO_PEFT:
            continue
        if key not in EXPECTED:
            # Other ways of training, which change the layers, or import a module by its name.
            if value not in ({}, [], False) and not isinstance(getattr(usual, key), str):
                raise UserError(f"{file}: {key} is {shown(repr(value))}; that is not done here")
            continue
        expected, fits = EXPECTED[key]
        if not fits(value):
            raise UserError(f"{file}: {key} is {shown(repr(value))}; expected {expected}")
    kept = PeftConfig.from_pretrained(str(directory), local_files_only=True)
    assert isinstance(kept, LoraConfig)
    return kept


def check_fits(lora: LoraConfig, weights: Any, rows: int, directory: Path) -> None:
    """Pass if the ranks are those of the stored matrices, and the tokens in the base's table.

    Args:
        lora: of the adapter.
        weights: its open file.
        rows: of the base's token table.
        directory: of the adapter, for messages.

    Raises:
        UserError: they are not: PEFT would first make matrices of any rank.
    """
    file = directory / ADAPTER_CONFIG
    matrices = [key for key in weights.keys() if re.search(r"\.lora_(embedding_)?A", key)]
    ranks = {weights.get_slice(key).get_shape()[0] for key in matrices}
    most = max([lora.r, *(lora.rank_pattern or {}).values()])
    if ranks and most > max(ranks):
        raise UserError(f"{file} names a rank of {most:,}, but the largest stored is {max(ranks)}")
    tokens: Any = lora.trainable_token_indices or []
    lists = tokens.values() if isinstance(tokens, dict) else [tokens]
    last = max((index for one in lists for index in one), default=0)
    if last >= rows:
        raise UserError(
            f"{file}: trainable_token_indices has token {last:,}, the base {rows:,} rows"
        )


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e9 and math.isfinite(value)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _mapping_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict) and all(_pattern(key) and fits(one) for key, one in value.items())
    )


def _either(*kinds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(fits(value) for fits in kinds)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _switch(value: Any) -> bool:
    return isinstance(value, bool)


def _pattern(value: Any) -> bool:
    try:
        return _text(value) and bool(re.compile(value)) and not explodes(value)
    except (re.error, RecursionError, OverflowError):
        return False


_TOKENS = _list_of(_whole(0, 2**24))
_LAYERS = _whole(0, 4096)
# By key: what is expected, in words and as a test.
EXPECTED = {
    "r": (f"a whole number from 1 to {MOST_RANK:,}", _whole(1, MOST_RANK)),
    "lora_alpha": ("a number", _number),
    "lora_dropout": ("a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1),
    "bias": ("none, all or lora_only", lambda value: value in ("none", "all", "lora_only")),
    "rank_pattern": ("ranks by patterns of names", _mapping_of(_whole(1, MOST_RANK))),
    "alpha_pattern": ("numbers by patterns of names", _mapping_of(_number)),
    "init_lora_weights": ("true, false or a word", _either(_switch, _text)),
    "trainable_token_indices": (
        "token ids, or lists of them by module",
        _either(
            _TOKENS, lambda value: isinstance(value, dict) and all(map(_TOKENS, value.values()))
        ),
    ),
    **dict.fromkeys(
        ("target_modules", "exclude_modules"),
        ("names of modules or a regular expression", _either(_list_of(_text), _pattern)),
    ),
    **dict.fromkeys(
        ("modules_to_save", "layers_pattern"), ("names", _either(_list_of(_text), _pattern))
    ),
    "layers_to_transform": ("numbers of layers", _either(_LAYERS, _list_of(_LAYERS))),
    **dict.fromkeys(
        ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "inference_mode"),
        ("true or false", _switch),
    ),
    **dict.fromkeys(("base_model_name_or_path", "task_type"), ("text", _text)),
}
# They change no layer.
LEFT_TO_PEFT = ("peft_type", "peft_version", "auto_mapping", "revision", "runtime_config")

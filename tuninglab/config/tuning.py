"""What is tuned, as the user writes it: the source document's `tuning_config` and what goes beyond.

No torch here: the command line builds its flags and `--help` from this class.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from tuninglab.errors import UserError

Tuning = TypeVar("Tuning", bound="LoraTuning")

# The source document: attention of LLaMA, then the gated cross-attention block.
DEFAULT_TARGET_MODULES = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("to_q", "to_kv", "to_out", "ff.1", "ff.3"),
)
# All linear layers of a T5 with gated feed-forward (v1.1, flan), its head excepted.
T5_TARGET_MODULES = ("q", "k", "v", "o", "wi_0", "wi_1", "wo")

# Hugging Face spells it without the prefix (peft.LoraConfig.target_modules).
ALIASES = {"target_modules": "lora_target_modules"}


@dataclass
class LoraTuning:
    """LoRA on linear layers, in the names and with the values of the source document."""

    r: int = 16
    """Rank of the LoRA matrices."""
    lora_alpha: int = 16
    """LoRA is scaled by lora_alpha / r."""
    lora_target_modules: list[str] = field(default_factory=lambda: list(DEFAULT_TARGET_MODULES))
    """Linear layers of the language model that get LoRA, by the end of their name."""
    lora_dropout: float = 0.0
    """Dropout on the input of LoRA."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases that train: none, all of the language model, or those of the LoRA layers."""
    modules_to_save: list[str] = field(default_factory=list)
    """Modules trained and saved in full, by the end of their name."""
    task_type: Literal["VL", "CAUSAL_LM", "SEQ_2_SEQ_LM"] = "VL"
    """Task type; VL, the source document's name, means none to PEFT."""

    # Parts that only a Flamingo has; its TuningConfig makes settings of these.
    train_gates: ClassVar[bool] = False
    train_perceiver: ClassVar[bool] = False
    train_cross_attention: ClassVar[bool] = False
    train_new_tokens: ClassVar[bool] = False
    gate_lr_multiplier: ClassVar[float] = 1.0

    @classmethod
    def from_dict(cls: type[Tuning], values: Mapping[str, Any]) -> Tuning:
        """Build from a mapping; `target_modules` is accepted for `lora_target_modules`.

        Raises:
            UserError: on an unknown key (the nearest name is given) or a value out of range.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"tuning_config must be a mapping of names to values, got {values!r}.")
        known = {f.name for f in fields(cls)}
        given: dict[str, Any] = {}
        for key, value in values.items():
            name = ALIASES.get(key, key)
            if name not in known:
                raise UserError(_unknown_key(str(key), sorted(known | set(ALIASES))))
            if name in given:
                raise UserError(f"tuning_config gives {name} twice ({key} is another name for it).")
            given[name] = [value] if name in _LISTS and isinstance(value, str) else value
        config = cls(**given)
        config.validate()
        return config

    def validate(self) -> None:
        """Check types and ranges.

        Raises:
            UserError: naming the field, what was given and what is allowed.
        """
        for name in ("r", "lora_alpha"):
            value = getattr(self, name)
            _require(_is_int(value) and value >= 1, name, value, "a whole number of at least 1")
        rate = self.lora_dropout
        fine = _is_number(rate) and 0 <= rate < 1
        _require(fine, "lora_dropout", rate, "a number from 0 to below 1")
        for name in _LISTS:
            value = getattr(self, name)
            fine = isinstance(value, (list, tuple)) and all(isinstance(v, str) and v for v in value)
            _require(fine, name, value, "a list of module names")
        _require(bool(self.lora_target_modules), "lora_target_modules", [], "at least one name")
        hints = get_type_hints(type(self))
        for name in ("bias", "task_type"):
            value, choices = getattr(self, name), get_args(hints[name])
            _require(value in choices, name, value, f"one of {', '.join(choices)}")


@dataclass
class TuningConfig(LoraTuning):
    """What is trained: LoRA on linear layers of the language model, and parts trained directly.

    The first seven fields are the source document's `tuning_config`, names and values.
    """

    train_gates: bool = True
    """Train attn_gate and ff_gate of every gated block."""
    train_perceiver: bool = False
    """Train the Perceiver in full."""
    train_cross_attention: bool = False
    """Train the gated blocks in full; they then get no LoRA."""
    train_new_tokens: bool = False
    """Train the rows of <image> and <|endofchunk|> in the input and output embeddings."""
    gate_lr_multiplier: float = 10.0
    """Learning rate of the gates, as a multiple of --learning_rate."""

    def validate(self) -> None:
        """Check types and ranges.

        Raises:
            UserError: naming the field, what was given and what is allowed.
        """
        super().validate()
        rate = self.gate_lr_multiplier
        _require(_is_number(rate) and rate > 0, "gate_lr_multiplier", rate, "a number above 0")
        for name in _SWITCHES:
            value = getattr(self, name)
            _require(isinstance(value, bool), name, value, "true or false")


@dataclass
class TextTuningConfig(LoraTuning):
    """LoRA on the linear layers of a T5."""

    lora_target_modules: list[str] = field(default_factory=lambda: list(T5_TARGET_MODULES))
    """Linear layers that get LoRA, by the end of their name."""
    task_type: Literal["SEQ_2_SEQ_LM", "VL", "CAUSAL_LM"] = "SEQ_2_SEQ_LM"
    """Task type, as PEFT names it."""


_LISTS = ("lora_target_modules", "modules_to_save")
_SWITCHES = ("train_gates", "train_perceiver", "train_cross_attention", "train_new_tokens")


def _unknown_key(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"tuning_config has no key {key!r}; {hint}"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    # nan and inf are refused: a nan scale trains into nothing without an error.
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _require(ok: bool, name: str, given: object, expected: str) -> None:
    if not ok:
        raise UserError(f"tuning_config.{name} is {given!r}; it must be {expected}.")

"""What is tuned, as the user writes it: the source document's `tuning_config` and what goes beyond.

No torch here: the command line builds its flags and `--help` from this class.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from tyro.conf import arg

from tuninglab.config.checks import check
from tuninglab.config.fields import build, settle_types

Tuning = TypeVar("Tuning", bound="LoraTuning")

# The source document: attention of LLaMA, then the gated cross-attention block.
DEFAULT_TARGET_MODULES = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("to_q", "to_kv", "to_out", "ff.1", "ff.3"),
)
# All linear layers of a T5 with gated feed-forward (v1.1, flan), its head excepted.
T5_TARGET_MODULES = ("q", "k", "v", "o", "wi_0", "wi_1", "wo")

# Hugging Face spells it without the prefix (peft.LoraConfig.target_modules).
Patterns = Annotated[list[str], arg(aliases=("--target_modules",))]
AnswerTokens = Literal["auto", "true", "false"]
PREFIX = "tuning_config."


@dataclass
class LoraTuning:
    """LoRA on linear layers, in the names and with the values of the source document."""

    r: int = 16
    """Rank of the LoRA matrices."""
    lora_alpha: int = 16
    """LoRA is scaled by lora_alpha / r."""
    lora_target_modules: Patterns = field(default_factory=lambda: list(DEFAULT_TARGET_MODULES))
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
    train_answer_tokens: ClassVar[AnswerTokens] = "false"
    gate_lr_multiplier: ClassVar[float] = 1.0

    @classmethod
    def from_dict(cls: type[Tuning], values: Mapping[str, Any]) -> Tuning:
        """Build from a mapping; `target_modules` is accepted for `lora_target_modules`.

        Raises:
            UserError: on an unknown key (the nearest name is given) or a value out of range.
        """
        config = build(values, cls, "", PREFIX)
        config.validate()
        return config

    def validate(self) -> None:
        """Check types and ranges.

        Raises:
            UserError: naming the field, what was given and what is allowed.
        """
        settle_types(self, PREFIX)
        for name in ("r", "lora_alpha"):
            value = getattr(self, name)
            check(value >= 1, PREFIX + name, value, "a whole number of at least 1")
        rate = self.lora_dropout
        check(0 <= rate < 1, f"{PREFIX}lora_dropout", rate, "a number from 0 to below 1")
        for name in ("lora_target_modules", "modules_to_save"):
            value = getattr(self, name)
            check("" not in value, PREFIX + name, value, "names of modules")
        patterns = self.lora_target_modules
        check(bool(patterns), f"{PREFIX}lora_target_modules", patterns, "at least one name")


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
    train_answer_tokens: AnswerTokens = "auto"
    """Train the rows of the tokens that answers consist of. auto: if the base is worse than
    guessing at them, and with the embedded base on data of your own."""
    gate_lr_multiplier: float = 10.0
    """Learning rate of the gates, as a multiple of --learning_rate."""

    def validate(self) -> None:
        """Check types and ranges.

        Raises:
            UserError: naming the field, what was given and what is allowed.
        """
        super().validate()
        rate = self.gate_lr_multiplier
        # nan and inf are refused: a nan scale trains into nothing without an error.
        fine = math.isfinite(rate) and rate > 0
        check(fine, f"{PREFIX}gate_lr_multiplier", rate, "a number above 0")


@dataclass
class TextTuningConfig(LoraTuning):
    """LoRA on the linear layers of a T5."""

    lora_target_modules: Patterns = field(default_factory=lambda: list(T5_TARGET_MODULES))
    """Linear layers that get LoRA, by the end of their name."""
    task_type: Literal["SEQ_2_SEQ_LM", "VL", "CAUSAL_LM"] = "SEQ_2_SEQ_LM"
    """Task type, as PEFT names it."""

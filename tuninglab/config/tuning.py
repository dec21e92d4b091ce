"""What is tuned, as the user writes it: the source document's `tuning_config` and what goes beyond.

No torch here: the command line builds its flags and `--help` from this class.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from tyro.conf import arg

from tuninglab.config.checks import MOST_RATE, check
from tuninglab.config.fields import build, settle_types
from tuninglab.config.pairs import pairs
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
Patterns = Annotated[list[str], arg(aliases=("--target_modules",))]
AnswerTokens = Literal["auto", "true", "false"]
PREFIX = "tuning_config."
# Every linear layer but the output layer, as PEFT means it; the short word is LLaMA-Factory's.
ALL_LINEAR = ("all-linear", "all")
# What works here of PEFT 0.21's; PiSSA and OLoRA are saved as the plain LoRA that they come to.
INITS = r"default|gaussian|orthogonal|olora|pissa|pissa_niter_\d+"
# Of the others, why not.
NO_INITS = {
    **dict.fromkeys(("eva", "corda", "lora_ga"), "needs a pass over the data before training"),
    "loftq": "quantises the base itself; for that take --quantization",
    "mica": "freezes half of LoRA, which a checkpoint would not hold",
}

# The widest layers have 53,248 numbers (Llama 3.1 405B); a rank beyond that is more than the layer.
MOST_OF = {"r": 2**16, "lora_alpha": 10**6}
MOST_FACTOR = 1e6

# The parts of a Flamingo; no parameter is in two of them.
Part = Literal["gates", "perceiver", "cross_attention", "vision", "lm", "head", "embeddings"]
SWITCHES: dict[Part, str] = {
    "gates": "train_gates",
    "perceiver": "train_perceiver",
    "cross_attention": "train_cross_attention",
}
Ranks = Annotated[dict[str, int], pairs("PATTERN=NUMBER", int)]
Rates = Annotated[
    dict[str, float], pairs("PART=RATE", float), arg(aliases=("--part_learning_rates",))
]


@dataclass
class LoraTuning:
    """LoRA on linear layers, in the names and with the values of the source document."""

    r: int = 16
    """Rank of the LoRA matrices."""
    lora_alpha: int = 16
    """LoRA is scaled by lora_alpha / r."""
    lora_target_modules: Patterns = field(default_factory=lambda: list(DEFAULT_TARGET_MODULES))
    """Linear layers of the language model that get LoRA, by the end of their name; all-linear: all
    but the output layer."""
    lora_dropout: float = 0.0
    """Dropout on the input of LoRA."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases that train: none, all of the language model, or those of the LoRA layers."""
    modules_to_save: list[str] = field(default_factory=list)
    """Modules trained and saved in full, by the end of their name."""
    task_type: Literal["VL", "CAUSAL_LM", "SEQ_2_SEQ_LM"] = "VL"
    """Task type; VL, the source document's name, means none to PEFT."""
    rank_pattern: Ranks = field(default_factory=dict)
    """Ranks other than r, by the end of a layer's name or a regular expression, as in PEFT."""
    alpha_pattern: Ranks = field(default_factory=dict)
    """The same for lora_alpha."""
    use_rslora: bool = False
    """Scale LoRA by lora_alpha / sqrt(r) instead."""
    use_dora: bool = False
    """DoRA: the length of each row of a weight trains besides. Needs a base in floats."""
    init_lora_weights: str = "default"
    """Start of LoRA: default, gaussian, orthogonal, olora, pissa or pissa_niter_N."""

    # Parts that only a Flamingo has; its TuningConfig makes settings of these.
    train_gates: ClassVar[bool] = False
    train_perceiver: ClassVar[bool] = False
    train_cross_attention: ClassVar[bool] = False
    train_new_tokens: ClassVar[bool] = False
    train_answer_tokens: ClassVar[AnswerTokens] = "false"
    train: ClassVar[list[Part]] = []
    freeze: ClassVar[list[Part]] = []
    gate_lr_multiplier: ClassVar[float] = 1.0
    part_learning_rates: ClassVar[dict[str, float]] = {}

    @property
    def full_parts(self) -> set[str]:
        """The parts that train in full, whichever setting says so."""
        switched = [part for part, name in SWITCHES.items() if getattr(self, name)]
        return {*switched, *self.train} - {*self.freeze}

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
            value, most = getattr(self, name), MOST_OF[name]
            expected = f"a whole number of at least 1 and at most {most:,}"
            check(1 <= value <= most, PREFIX + name, value, expected)
        rate = self.lora_dropout
        check(0 <= rate < 1, f"{PREFIX}lora_dropout", rate, "a number from 0 to below 1")
        for name in ("lora_target_modules", "modules_to_save"):
            value = getattr(self, name)
            check(all(map(str.strip, value)), PREFIX + name, value, "names of modules")
        patterns = self.lora_target_modules
        check(bool(patterns), f"{PREFIX}lora_target_modules", patterns, "at least one name")
        alone = len(patterns) == 1 or not set(ALL_LINEAR) & set(patterns)
        check(alone, f"{PREFIX}lora_target_modules", patterns, "all-linear alone, or names")
        for name, most in (
            ("rank_pattern", MOST_OF["r"]),
            ("alpha_pattern", MOST_OF["lora_alpha"]),
        ):
            _check_pattern(PREFIX + name, getattr(self, name), most)
        init = self.init_lora_weights
        expected = f"one of {INITS.replace('|', ', ')}".replace(r"\d+", "N")
        why_not = f"PEFT's {init} {NO_INITS[init]}." if init in NO_INITS else ""
        known = bool(re.fullmatch(INITS, init))
        check(known, f"{PREFIX}init_lora_weights", init, expected, why_not)


def _check_pattern(flag: str, values: Mapping[str, int], most: int) -> None:
    for pattern, value in values.items():
        expected = f"a whole number of at least 1 and at most {most:,}"
        check(1 <= value <= most, f"{flag} of {pattern}", value, expected)
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"--{flag}: {pattern!r} is no regular expression ({error}). Give the end of a "
                "layer's name, e.g. q_proj=8."
            ) from error


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
    train: Annotated[list[Part], arg(aliases=("--train",))] = field(default_factory=list)
    """Parts trained in full, besides LoRA and what the settings above turn on."""
    freeze: Annotated[list[Part], arg(aliases=("--freeze",))] = field(default_factory=list)
    """Parts in which nothing trains, LoRA included."""
    gate_lr_multiplier: float = 10.0
    """Learning rate of the gates, as a multiple of --learning_rate."""
    part_learning_rates: Rates = field(default_factory=dict)
    """Learning rates of parts, LoRA in them included; the others have --learning_rate."""

    def validate(self) -> None:
        """Check types and ranges.

        Raises:
            UserError: naming the field, what was given and what is allowed.
        """
        super().validate()
        rate = self.gate_lr_multiplier
        # nan and inf are refused: a nan scale trains into nothing without an error.
        expected = f"a number above 0 and at most {MOST_FACTOR:g}"
        check(0 < rate <= MOST_FACTOR, f"{PREFIX}gate_lr_multiplier", rate, expected)
        self._check_part_rates()
        self._check_parts()

    def _check_part_rates(self) -> None:
        flag = f"{PREFIX}part_learning_rates"
        for part, rate in self.part_learning_rates.items():
            near = difflib.get_close_matches(part, get_args(Part), n=1)
            hint = f"Did you mean {near[0]}?" if near else ""
            check(part in get_args(Part), flag, part, f"parts of {', '.join(get_args(Part))}", hint)
            expected = f"a number above 0 and at most {MOST_RATE:g}"
            check(0 < rate <= MOST_RATE, f"{flag} of {part}", rate, expected)
        usual = type(self).gate_lr_multiplier
        if "gates" in self.part_learning_rates and self.gate_lr_multiplier != usual:
            raise UserError(
                f"--{flag} names gates, and --{PREFIX}gate_lr_multiplier is given too. Give one."
            )

    def _check_parts(self) -> None:
        both = [part for part in self.train if part in self.freeze]
        # The gates train unless they are told not to, so freezing them contradicts nothing.
        both += [
            n
            for part, n in SWITCHES.items()
            if part in self.freeze and part != "gates" and getattr(self, n)
        ]
        if self.train_new_tokens:
            both += [part for part in ("head", "embeddings") if part in self.freeze]
        if both:
            raise UserError(
                f"--freeze names {', '.join(self.freeze)}, but {both[0]} is to train. Drop one."
            )
        if "gates" in self.train and not self.train_gates:
            raise UserError("--train names gates, but train_gates is false. Drop one of them.")


@dataclass
class TextTuningConfig(LoraTuning):
    """LoRA on the linear layers of a T5."""

    lora_target_modules: Patterns = field(default_factory=lambda: list(T5_TARGET_MODULES))
    """Linear layers that get LoRA, by the end of their name."""
    task_type: Literal["SEQ_2_SEQ_LM", "VL", "CAUSAL_LM"] = "SEQ_2_SEQ_LM"
    """Task type, as PEFT names it."""

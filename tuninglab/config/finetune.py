"""The settings of `finetune`: the source of its flags, YAML keys and help."""

import math
import os
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, get_args

from tyro.conf import arg

from tuninglab.adapters.tuning_config import TuningConfig
from tuninglab.checks import check, check_positive, check_run_name
from tuninglab.errors import UserError

Scheduler = Literal["constant", "linear", "cosine"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

EVERY_N_LAYERS = 4  # OpenFlamingo-9B's interval
EMBEDDED_PICTURES = 1000


@dataclass
class FinetuneConfig:
    """Tune a Flamingo on pictures and dialogues; with no data named, on the embedded default."""

    model: str = "embedded"
    """Base model: `embedded`, a model directory, or a hub id."""
    lang_encoder: str | None = None
    """Start from this plain language model instead (directory or hub id; with --vision_encoder)."""
    vision_encoder: str | None = None
    """CLIP tower for --lang_encoder (directory or hub id)."""
    cross_attn_every_n_layers: int = EVERY_N_LAYERS
    """With --lang_encoder: a gated block before every n-th decoder layer."""
    data: str | None = None
    """Training data: LLaVA JSON, messages JSON or JSONL. None: the embedded data."""
    image_root: str | None = None
    """Folder that picture paths start from. None: the data file's folder."""
    embedded_pictures: int = EMBEDDED_PICTURES
    """Without --data: training pictures of the embedded data, each with three questions."""
    val_data: str | None = None
    """Validation data, in the formats of --data."""
    val_split: float = 0.0
    """Share of --data held out for validation, from 0 to below 1."""
    run_name: str | None = None
    """Name of the run folder. None: a free name is made up."""
    output_dir: str = "runs"
    """Folder that holds the run folders."""
    epochs: Annotated[int, arg(aliases=("--num_train_epochs",))] = 1
    """Passes over the training data."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, whatever --epochs says."""
    batch_size: Annotated[int, arg(aliases=("--per_device_train_batch_size",))] = 8
    """Records per process and forward pass."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step."""
    learning_rate: Annotated[float, arg(aliases=("--lr",))] = 2e-4
    """Peak learning rate."""
    lr_scheduler: Annotated[Scheduler, arg(aliases=("--lr_scheduler_type",))] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int | None = None
    """Optimizer steps of linear warm-up. None: 3 % of all steps."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm, once per optimizer step; 0 turns clipping off."""
    workers: Annotated[int, arg(aliases=("--dataloader_num_workers",))] = 0
    """Processes that load pictures; 0 loads them in the training process."""
    precision: Precision = "auto"
    """Number format of the computation; auto says what it chose and why."""
    seed: int = 0
    """Seed of data order, fresh weights and dropout."""
    logging_steps: int = 1
    """Optimizer steps between lines in metrics.jsonl."""
    save_steps: int | None = None
    """Optimizer steps between checkpoints. None: at the end only."""
    eval_steps: int | None = None
    """Optimizer steps between validations. None: only before and after the training."""
    activation_checkpointing: Annotated[bool, arg(aliases=("--gradient_checkpointing",))] = False
    """Recompute activations in the backward pass: less memory, more time."""
    resume: bool = False
    """Go on from the last checkpoint of --run_name."""
    overwrite: Annotated[bool, arg(aliases=("--overwrite_output_dir",))] = False
    """Replace an existing run folder of this name."""
    skip_bad_records: bool = False
    """Leave out records that have problems, and count them, instead of stopping."""
    max_tokens: Annotated[int | None, arg(aliases=("--max_seq_length",))] = None
    """Longest record in tokens. None: what the language model can read."""
    json: bool = False
    """Print the final figures as JSON on standard output."""
    debug: bool = False
    """Show the Python traceback of an error."""
    config: str | None = None
    """YAML file of settings; flags override it."""
    print_config: bool = False
    """Print the resolved settings as YAML and stop."""
    tuning_config: TuningConfig = field(default_factory=TuningConfig)

    def __post_init__(self) -> None:
        # The source document writes tuning_config as a dict; it is taken as it stands.
        if isinstance(self.tuning_config, dict):
            self.tuning_config = TuningConfig.from_dict(self.tuning_config)

    def located(self) -> "FinetuneConfig":
        """These settings with the paths of what exists made absolute, so that a run keeps its base.

        A run folder names its base and data; it may be used from any working directory.
        """
        names = ("model", "lang_encoder", "vision_encoder", "data", "image_root", "val_data")
        given = {name: getattr(self, name) for name in names}
        # "embedded" names what ships with the package, whatever lies in this directory.
        paths = {n: p for n, p in given.items() if p and p != "embedded" and os.path.exists(p)}
        return replace(self, **{name: os.path.abspath(path) for name, path in paths.items()})

    def validate(self) -> None:
        """Check every range, and settings that exclude each other.

        Raises:
            UserError: naming the flag, the value given, what is expected and the remedy.
        """
        # Range first, then what excludes each other: the message names the simpler mistake.
        check_positive(self, "cross_attn_every_n_layers", "epochs", "max_steps", "batch_size")
        check_positive(self, "gradient_accumulation_steps", "logging_steps", "save_steps")
        check_positive(self, "eval_steps", "max_tokens", "embedded_pictures")
        for name in ("warmup_steps", "workers", "seed"):
            value = getattr(self, name)
            check(value is None or value >= 0, name, value, "a whole number of at least 0")
        # torch and numpy take seeds of 32 bits in common.
        check(self.seed < 2**32, "seed", self.seed, "a number below 4294967296")
        self._check_rates()
        if self.run_name is not None:
            check_run_name(self.run_name)
        self._check_combinations()
        self.tuning_config.validate()

    def _check_rates(self) -> None:
        rate = self.learning_rate
        above_zero = math.isfinite(rate) and rate > 0
        check(above_zero, "learning_rate", rate, "a finite number above 0", "2e-4 is usual.")
        for name in ("weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            fine = math.isfinite(value) and value >= 0
            check(fine, name, value, "a finite number of at least 0")
        check(0 <= self.val_split < 1, "val_split", self.val_split, "a share from 0 to below 1")
        # Flags and YAML are checked when they are read; these two guard settings made in Python.
        schedulers, precisions = get_args(Scheduler), get_args(Precision)
        known = self.lr_scheduler in schedulers
        check(known, "lr_scheduler", self.lr_scheduler, f"one of {', '.join(schedulers)}")
        known = self.precision in precisions
        check(known, "precision", self.precision, f"one of {', '.join(precisions)}")

    def _check_combinations(self) -> None:
        pair = (self.lang_encoder, self.vision_encoder)
        if (pair[0] is None) != (pair[1] is None):
            given = "--lang_encoder" if pair[0] is not None else "--vision_encoder"
            other = "--vision_encoder" if pair[0] is not None else "--lang_encoder"
            raise UserError(f"{given} is given without {other}. Give both, or only --model.")
        # Two bases at once: whichever won, somebody would have expected the other.
        if pair[0] is not None and self.model != "embedded":
            raise UserError("--model and --lang_encoder are both given. Give one of them.")
        # One keeps what is there, the other deletes it.
        if pair[0] is None and self.cross_attn_every_n_layers != EVERY_N_LAYERS:
            raise UserError(
                "--cross_attn_every_n_layers is given without --lang_encoder. A base model has its "
                "gated blocks already; leave the flag out."
            )
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite are both given. Give one of them.")
        if self.resume and self.run_name is None:
            raise UserError("--resume is given without --run_name. Name the run to go on with.")
        if self.val_data is not None and self.val_split > 0:
            raise UserError("--val_data and --val_split are both given. Give one of them.")
        if self.data is None:
            self._check_without_data()
        elif self.embedded_pictures != EMBEDDED_PICTURES:
            raise UserError("--embedded_pictures is given with --data. Leave one of them out.")
        elif self.eval_steps is not None and self.val_data is None and self.val_split == 0:
            raise UserError(
                "--eval_steps is given, but no validation data. Add --val_split 0.1 or --val_data."
            )

    def _check_without_data(self) -> None:
        # The embedded data brings its own pictures and validation set.
        for name in ("image_root", "val_data"):
            if getattr(self, name) is not None:
                raise UserError(f"--{name} is given without --data. Name the training data too.")
        if self.val_split > 0:
            raise UserError("--val_split is given without --data. The embedded data is split.")

"""The settings that every training recipe shares: what the loop and the run folder need."""

import os
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, TypeVar, get_args

from tyro.conf import Suppress, arg

from tuninglab.config.checks import MOST_RATE, check, check_paths, check_positive, check_run_name
from tuninglab.config.data import located_data
from tuninglab.config.fields import leaves, marked, settle_types
from tuninglab.config.marks import Mark
from tuninglab.config.running import RunningConfig
from tuninglab.config.tuning import LoraTuning
from tuninglab.errors import UserError
from tuninglab.untrusted import shown

Config = TypeVar("Config", bound="TrainingConfig")
Scheduler = Literal["constant", "linear", "cosine"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Products = Literal["auto", "onednn", "torch"]
Quantization = Literal["int8", "bnb-int8", "bnb-nf4", "none"]
Saver = Literal["norm", "glu", "attention", "loss", "embedding", "norm_rows"]
EXACT_SAVERS: list[Saver] = ["norm", "loss"]  # they compute the same, in less memory

# The settings that --compare measures with, or writes by.
MEASURED = (
    *("compare", "rounds", "precision", "threads", "enable_int8", "memory_savers"),
    *("checkpoint_every", "activation_checkpointing", "tuning_config", "output_dir", "run_name"),
)


@dataclass
class TrainingConfig(RunningConfig):
    """Settings of a training run, whatever is tuned; each recipe adds its own."""

    # What --enable_int8 means where it is not given.
    INT8_BY_DEFAULT: ClassVar[bool] = False
    # Of a Flamingo alone; its FinetuneConfig makes settings of them.
    cache_features: ClassVar[str | None] = None
    group_by_length: ClassVar[bool] = False
    pack_tokens: ClassVar[int | None] = None
    pack_images: ClassVar[int | None] = None

    run_name: Annotated[str | None, Mark.CHANGEABLE] = None
    """Name of the run folder. None: a free name is made up."""
    output_dir: Annotated[str, Mark.CHANGEABLE] = "runs"
    """Folder that holds the run folders."""
    epochs: Annotated[int | None, arg(aliases=("--num_train_epochs",)), Mark.CHANGEABLE] = None
    """Passes over the training data. None: by the size of base and data."""
    max_steps: Annotated[int | None, Mark.CHANGEABLE] = None
    """Stop after this many optimizer steps, whatever --epochs says."""
    batch_size: Annotated[
        int | Literal["auto"] | None, arg(aliases=("--per_device_train_batch_size",)), Mark.DECIDED
    ] = None
    """Records per process and forward pass. None: by the size of the base; auto: the most that fit
    into memory, by the plan."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step."""
    learning_rate: Annotated[float | None, arg(aliases=("--lr",))] = None
    """Peak learning rate. None: by the size of the base."""
    lr_scheduler: Annotated[Scheduler, arg(aliases=("--lr_scheduler_type",))] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int | None = None
    """Optimizer steps of linear warm-up. None: 3 % of all steps."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm, once per optimizer step; 0 turns clipping off."""
    workers: Annotated[int, arg(aliases=("--dataloader_num_workers",)), Mark.CHANGEABLE] = 0
    """Processes that load the data; 0 loads it in the training process."""
    threads: Annotated[int | None, Mark.CHANGEABLE] = None
    """Threads that compute, in each process. None: one for each core."""
    precision: Annotated[Precision, Mark.DECIDED] = "auto"
    """Number format of the computation; auto says what it chose and why."""
    products: Annotated[Products, Mark.DECIDED] = "auto"
    """Who multiplies float32 on a CPU; auto tries both and says which it took."""
    enable_int8: Annotated[bool | None, Mark.DECIDED] = None
    """Keep the frozen base in int8 and multiply it as int8. None: in flan-t5 only."""
    quantization: Annotated[Quantization | None, Mark.DECIDED] = None
    """Format of the frozen base. None: int8 with --enable_int8, else none."""
    memory_savers: Annotated[list[Saver] | None, arg(aliases=("--lean",)), Mark.DECIDED] = None
    """Memory savers to use, by name. None: all with int8, else norm and loss, which are exact."""
    seed: int = 0
    """Seed of data order, fresh weights and dropout."""
    logging_steps: Annotated[int, Mark.CHANGEABLE] = 1
    """Optimizer steps between lines in metrics.jsonl."""
    save_steps: Annotated[int | None, Mark.CHANGEABLE] = None
    """Optimizer steps between checkpoints. None: at the end only."""
    keep_checkpoints: Annotated[int, arg(aliases=("--save_total_limit",)), Mark.CHANGEABLE] = 2
    """How many checkpoints stay, the newest; older ones are deleted."""
    activation_checkpointing: Annotated[bool, arg(aliases=("--gradient_checkpointing",))] = False
    """Recompute the activations of all blocks in the backward pass: less memory, more time."""
    checkpoint_every: int | None = None
    """Recompute the activations of every n-th block only: less memory, more time."""
    resume: Annotated[bool | Literal["auto"], Mark.CALL] = False
    """Go on from the last checkpoint of --run_name; auto: if there is one, else start."""
    overwrite: Annotated[bool, arg(aliases=("--overwrite_output_dir",)), Mark.CALL] = False
    """Replace an existing run folder of this name."""
    skip_bad_records: bool = False
    """Leave out records that have problems, and count them, instead of stopping."""
    max_tokens: Annotated[int | None, arg(aliases=("--max_seq_length",))] = None
    """Longest record in tokens. None: what the model can read."""
    json: Annotated[bool, Mark.CALL] = False
    """Print the final figures as JSON on standard output."""
    debug: Annotated[bool, Mark.CALL] = False
    """Show the Python traceback of an error."""
    config: Annotated[str | None, Mark.CALL] = None
    """YAML file of settings; flags override it."""
    print_config: Annotated[bool, Mark.CALL] = False
    """Print the resolved settings as YAML and stop."""
    # With --resume a flag at its default is a wish too: values alone do not tell.
    typed: Suppress[frozenset | None] = field(default=None, compare=False, repr=False)
    """Names of the settings that flags and --config file gave; None: made in Python."""
    tuning_config: LoraTuning = field(default_factory=LoraTuning)

    def __post_init__(self) -> None:
        # The source document writes tuning_config as a dict; it is taken as it stands.
        if isinstance(self.tuning_config, dict):
            tuning = self.__dataclass_fields__["tuning_config"].default_factory
            self.tuning_config = tuning.from_dict(self.tuning_config)

    @property
    def is_demo(self) -> bool:
        """Whether everything is the embedded default."""
        return self.model == "embedded" and self.data is None

    @property
    def base_format(self) -> Quantization:
        """How the frozen base is held: what --quantization and --enable_int8 come to."""
        if self.quantization is not None:
            return self.quantization
        int8 = self.INT8_BY_DEFAULT if self.enable_int8 is None else self.enable_int8
        return "int8" if int8 else "none"

    @property
    def savers(self) -> list[Saver]:
        """Names of the memory savers in use: what --memory_savers comes to."""
        if self.memory_savers is not None:
            return self.memory_savers
        return list(get_args(Saver)) if self.base_format == "int8" else list(EXACT_SAVERS)

    @property
    def checkpoint_interval(self) -> int | None:
        """Every how many blocks activations are recomputed; None: in no block."""
        return 1 if self.activation_checkpointing else self.checkpoint_every

    def located(self: Config) -> Config:
        """These settings with the paths of what exists made absolute, so that a run keeps its base.

        A run folder names its base and data; it may be used from any working directory.
        """
        given = {name: getattr(self, name) for name in marked(type(self), Mark.PATH)}
        # "embedded" names what ships with the package, whatever lies in this directory.
        paths = {n: p for n, p in given.items() if p and p != "embedded" and os.path.exists(p)}
        found = {name: os.path.abspath(path) for name, path in paths.items()}
        return replace(self, **found, **located_data(self, "data", "val_data"))

    def resolved(self: Config, precision: Precision | None = None) -> Config:
        """These settings with what was left open decided, as a run keeps them.

        Args:
            precision: what `auto` came to on this machine; None leaves it as it is.
        """
        kind = self.base_format
        # Of bitsandbytes' formats the switch says nothing.
        int8 = kind == "int8" if kind in ("int8", "none") else None
        base = {"quantization": kind, "enable_int8": int8, "memory_savers": self.savers}
        return replace(self, **base, precision=precision or self.precision)

    def going_on_from(self: Config, saved: Config) -> Config:
        """The settings that a run was started with, with what this call changes.

        What this call names (`typed`) is taken over or refused, never passed over.

        Raises:
            UserError: a setting was changed that the steps made so far depend on.
        """
        given, before, defaults = leaves(self), leaves(saved), leaves(type(self)())
        call, changeable, decided = (
            marked(type(self), mark) for mark in (Mark.CALL, Mark.CHANGEABLE, Mark.DECIDED)
        )
        changes, refused = {name: given[name] for name in call}, []
        for name in (name for name in given if name not in call):
            value, at_default = given[name], given[name] == defaults[name]
            # From Python nobody knows what was typed: a setting at its default reads as not given.
            silent = at_default if self.typed is None else name not in self.typed
            # `auto` asks for what the run decided when it was started.
            left_open = name in decided and value in (None, "auto")
            if silent or left_open or value == before[name]:
                continue
            if name in changeable:
                changes[name] = value
            else:
                was = f"the run was started with {shown(repr(before[name]))}"
                refused.append(f"--{name} is {shown(repr(value))}, but {was}.")
        if refused:
            hint = "Leave these flags out to go on, or start a new run with another --run_name."
            raise UserError("\n".join([*refused, hint]))
        return replace(saved, **changes, typed=self.typed)

    def validate(self) -> None:
        """Check every range, and settings that exclude each other.

        Raises:
            UserError: naming the flag, the value given, what is expected and the remedy.
        """
        # Flags and YAML are checked when they are read; this is for settings made in Python.
        settle_types(self, "--")
        # Range first, then what excludes each other: the message names the simpler mistake.
        check_positive(self, "epochs", "max_steps", "gradient_accumulation_steps")
        if self.batch_size != "auto":
            check_positive(self, "batch_size")
        check_positive(self, "logging_steps", "save_steps", "max_tokens")
        check_positive(self, "checkpoint_every", "keep_checkpoints")
        check_positive(self, "threads", most=4096)
        check_positive(self, "warmup_steps", least=0)
        check_positive(self, "workers", least=0, most=4096)
        # torch and numpy take seeds of 32 bits in common.
        check_positive(self, "seed", least=0, most=2**32 - 1)
        check_paths(self, "output_dir", *sorted(marked(type(self), Mark.PATH)))
        self._check_validation()
        self._check_running()
        self._check_rates()
        if self.run_name is not None:
            check_run_name(self.run_name)
        self._check_quantization()
        self._check_combinations()
        self.tuning_config.validate()

    def _check_rates(self) -> None:
        rate = self.learning_rate
        fine = rate is None or 0 < rate <= MOST_RATE
        expected = f"a finite number above 0 and at most {MOST_RATE:g}"
        check(fine, "learning_rate", rate, expected, "2e-4 is usual at 7 B.")
        for name, most in (("weight_decay", MOST_RATE), ("max_grad_norm", 1e9)):
            value = getattr(self, name)
            expected = f"a finite number of at least 0 and at most {most:g}"
            check(0 <= value <= most, name, value, expected)

    def _check_quantization(self) -> None:
        given = f"--enable_int8 {str(self.enable_int8).lower()}"
        kind = self.quantization
        # Somebody who turned int8 off may still want 4 bits.
        wrong = kind != "int8" if self.enable_int8 else kind in ("int8", "bnb-int8")
        if kind is not None and self.enable_int8 is not None and wrong:
            raise UserError(
                f"{given} and --quantization {kind} contradict each other. Drop {given} to get "
                f"{kind}, or drop --quantization to get {'int8' if self.enable_int8 else 'none'}."
            )
        if self.activation_checkpointing and self.checkpoint_every not in (None, 1):
            raise UserError(
                "--activation_checkpointing means every block, but --checkpoint_every is "
                f"{self.checkpoint_every}. Drop --activation_checkpointing to get that."
            )

    def _check_combinations(self) -> None:
        # One keeps what is there, the other deletes it.
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite are both given. Give one of them.")
        if self.resume and self.run_name is None:
            raise UserError("--resume is given without --run_name. Name the run to go on with.")
        self._check_validation_data()
        # A run that goes on, or may, has the rest of its settings from its start.
        if self.resume is False:
            self.check_best()

    def _check_comparison(self) -> None:
        """Refuse what --compare would pass over: it measures a fixed shape with random weights."""
        given, usual = leaves(self), leaves(type(self)())
        measured = {*MEASURED, *marked(type(self), Mark.CALL)} - {"resume"}
        passed_over = [
            f"--{name}"
            for name, value in given.items()
            if name.partition(".")[0] not in measured and value != usual[name]
        ]
        if passed_over:
            raise UserError(
                "--compare measures random weights of a fixed shape on random data; it has no use "
                f"for {', '.join(passed_over)}. Leave that out, or leave --compare out to tune."
            )

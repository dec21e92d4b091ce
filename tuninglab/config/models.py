"""The settings of the verbs about models on disk: `tree` and `convert`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from tuninglab.config.checks import check, check_paths
from tuninglab.console import program
from tuninglab.errors import UserError


@dataclass
class TreeConfig:
    """Print the module tree of a model."""

    model: Positional[str] = "embedded"
    """A preset (openflamingo-9b, openflamingo-9b-vitl-mpt7b, openflamingo-4b-vitl-rpj3b,
    openflamingo-3b-vitl-mpt1b, llama-7b, flan-t5-small, embedded), a model directory, a run folder,
    an adapter directory or a hub id. Weights are never read."""
    lora: bool = False
    """Show the tree with LoRA in place, as tuning would put it; with `--part lang_encoder` the
    language model is wrapped alone, as the source document has it."""
    lora_target_modules: list[str] | None = None
    """With --lora: layers that get it, by the end of their name. None: those that tuning takes."""
    part: str | None = None
    """Print only this module, e.g. `lang_encoder` or `perceiver`."""
    stats: bool = False
    """Add parameters, trainable share, bytes, number format and LoRA pattern to each line."""
    json: bool = False
    """Print the tree, with all statistics, as one nested JSON object."""
    debug: bool = False
    """Show the Python traceback of an error."""

    def validate(self) -> None:
        """Check what belongs together.

        Raises:
            UserError: naming the flag and the remedy.
        """
        check_paths(self, "model")
        names = self.lora_target_modules
        check(names is None or self.lora, "lora_target_modules", names, "--lora beside it")
        check(names != [], "lora_target_modules", names, "at least one name")


@dataclass
class ConvertConfig:
    """Turn a released checkpoint into a model directory or an adapter, or back; or inspect one."""

    from_: Annotated[
        Literal["open_flamingo", "otter", "multimodal_gpt"] | None, arg(name="from")
    ] = None
    """Whose checkpoint it is. None: read off its keys."""
    to: Literal["open_flamingo"] | None = None
    """Write the Flamingo named by --model as a checkpoint of this project instead."""
    checkpoint: str | None = None
    """The released file (checkpoint.pt, *.safetensors), or Otter's directory."""
    lang_encoder: str | None = None
    """The language model the checkpoint was trained with (directory or hub id)."""
    vision_encoder: str | None = None
    """Its tower: a transformers directory or hub id, or an OpenCLIP directory or file."""
    tokenizer: str | None = None
    """Directory or hub id of the tokenizer. None: that of --lang_encoder."""
    model: str | None = None
    """With --to: the Flamingo to write. With a LoRA checkpoint: the Flamingo it belongs to."""
    out: str | None = None
    """Directory to write; with --to, the file."""
    media_mode: Literal["previous", "next-v1"] | None = None
    """Which image a text token sees. None: as the checkpoint's version of OpenFlamingo had it."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Number format of the written weights. None: that of the language model."""
    inspect: bool = False
    """Only read the checkpoint and say what it is and what would become of every key."""
    trust_remote_code: bool = False
    """Run model code that lies beside the language model; only for sources you trust."""
    overwrite: bool = False
    """Replace what --out names."""
    json: bool = False
    """Print the report as JSON on standard output."""
    debug: bool = False
    """Show the Python traceback of an error."""

    def validate(self) -> None:
        """Check what belongs together.

        Raises:
            UserError: naming the flags and the remedy.
        """
        check_paths(self, *_PLACES)
        if self.inspect:
            self._need("checkpoint", "the file to look at")
            self._refuse("to", "--inspect only reads; leave it out to write")
            return
        if self.to is None:
            self._need("checkpoint", "the released file or directory")
            self._need("out", "the directory to write")
            return
        if self.model is None:
            self._need("checkpoint", "or --model DIR, the Flamingo to write")
        elif self.checkpoint is not None:
            self._refuse("checkpoint", "--model names the Flamingo to write; give one of the two")
        self._need("out", "the checkpoint.pt to write")
        for name in ("from_", *_PARTS):
            self._refuse(name, f"--to {self.to} writes a Flamingo as it is; leave it out")

    def _need(self, name: str, what: str) -> None:
        if getattr(self, name) is None:
            raise UserError(f"--{name} is missing: {what}. See {program()} convert --help")

    def _refuse(self, name: str, why: str) -> None:
        value = getattr(self, name)
        if value is not None:
            raise UserError(f"--{name.rstrip('_')} is {value!r}, but {why}")


_PLACES = ("checkpoint", "lang_encoder", "vision_encoder", "tokenizer", "model", "out")
# What a Flamingo that exists already has.
_PARTS = ("lang_encoder", "vision_encoder", "tokenizer", "media_mode", "dtype")

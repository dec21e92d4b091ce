"""The settings of the verbs about models on disk: `tree` and `convert`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass
class TreeConfig:
    """Print the module tree of a model."""

    model: Positional[str] = "embedded"
    """A model directory, a run folder, a preset such as `openflamingo-9b`, or `embedded`."""
    lora: bool = False
    """Show the tree with LoRA in place, as tuning would put it."""
    part: str | None = None
    """Print only this module, e.g. `lang_encoder` or `perceiver`."""
    stats: bool = False
    """Add parameters, trainable share, bytes, number format and LoRA pattern to each line."""
    json: bool = False
    """Print the tree as JSON."""
    debug: bool = False
    """Show the Python traceback of an error."""

    def validate(self) -> None:
        """Nothing here has a range."""


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
    """Its CLIP tower: a transformers directory or hub id, or an OpenCLIP directory or file."""
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

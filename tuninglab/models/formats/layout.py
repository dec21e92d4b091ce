"""The words every format speaks: what a checkpoint is, and the fate of each of its keys."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from tuninglab.errors import UserError

# Which image text sees (models/conditioning.py): the one before it, or the one after it.
MEDIA_MODES = ("previous", "next-v1")

# A name may say any number, and whoever builds a model of it would not come to an end.
MOST_LAYERS = 1000

Fate = Literal["used", "dropped", "missing", "unexpected"]


@dataclass(frozen=True)
class Key:
    """What became of one key.

    Attributes:
        name: the key in the file; for "missing", the name in the Flamingo that found no key.
        fate: "used" and "dropped" are explained; "missing" and "unexpected" are not.
        target: its name in our state dict, if used.
        reason: why it was dropped, is missing, or is not known.
        part: which third of its rows it fills, for a fused `in_proj`: 0 q, 1 k, 2 v; else None.
    """

    name: str
    fate: Fate
    target: str | None = None
    reason: str = ""
    part: int | None = None

    def rows(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """What it means of a file: a whole tensor, or q, k or v of a fused `in_proj`."""
        tensor = tensors[self.name]
        return tensor if self.part is None else tensor.chunk(3)[self.part]


@dataclass
class Checkpoint:
    """A foreign checkpoint, read but not yet converted.

    Attributes:
        path: the file or directory, as the user named it.
        tensors: its tensors by the names in the file, memory-mapped where the file allows it.
        extras: what else it held that could be read safely (`tuning_config`, `epoch`, ...).
        notes: what had to be said while reading (a foreign object recovered or skipped).
    """

    path: str
    tensors: Mapping[str, Tensor]
    extras: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name the file in whatever is refused meanwhile.

        Raises:
            UserError: also where names or shapes that no such checkpoint has led to another error.
        """
        try:
            yield
        except UserError as error:
            if self.path in str(error):
                raise
            raise UserError(f"{self.path}: {error}") from error
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{self.path} has names, shapes or settings of no known checkpoint: {reason}. "
                "Download or copy it again, or convert the one it was made from"
            ) from error


@dataclass
class Layout:
    """What a checkpoint says of the model it was saved from.

    Attributes:
        format: e.g. "open_flamingo v1", "open_flamingo v2", "otter", "multimodal_gpt LoRA".
        family: model_type of the language model in transformers (llama, mpt, gpt_neox, ...).
        width, media_width: hidden sizes of the language model and of the vision tower.
        gated_layers: numbers of the decoder layers that have a gated block.
        rows: rows of the token table, or None if the file does not hold it.
        perceiver: `FlamingoConfig` fields that its shapes determine (depth, latents, heads, ...).
        tower: model_type of the vision tower in transformers; CLIP where the file does not say.
        media_mode: the mode it was trained in; media_reason says how that is known.
        released: name of the released model it matches, or None.
        keys: the fate of every key.
        facts: further lines for people (rank of a LoRA, what is not in the file).
    """

    format: str
    family: str
    width: int
    media_width: int | None
    gated_layers: list[int]
    rows: int | None = None
    perceiver: dict[str, int] = field(default_factory=dict)
    tower: str = "clip_vision_model"
    media_mode: str = "previous"
    media_reason: str = ""
    released: str | None = None
    keys: list[Key] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    @property
    def interval(self) -> int | None:
        """A gated block before every n-th layer; None if there are none."""
        return self.gated_layers[0] + 1 if self.gated_layers else None

    @property
    def layers(self) -> range:
        """How many decoder layers the language model may have: no gated block comes after them."""
        last = self.gated_layers[-1] + 1
        return range(last, last + (self.interval or 1))

    @property
    def targets(self) -> set[str]:
        """The names in our state dict that the file fills."""
        return {key.target for key in self.keys if key.target}

    @property
    def layers_told(self) -> str:
        """The same in words."""
        first, last = self.layers[0], self.layers[-1]
        return f"{first}" if first == last else f"{first} to {last}"

    def with_fate(self, fate: Fate) -> list[Key]:
        """The keys of one fate, in the order of the file."""
        return [key for key in self.keys if key.fate == fate]

"""Samples to batches: ids and labels, pixels, padding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from tuninglab.console import say
from tuninglab.data.features import FeatureCache
from tuninglab.data.images import limit_aspect, load_image
from tuninglab.data.prompt import IGNORED, encode_dialogue, encode_prompt, named
from tuninglab.data.sample import ImageSource, Sample
from tuninglab.data.sampler import MaskedRow
from tuninglab.errors import UserError

# What frozen parts make of a picture, by the names of the model's arguments.
FEATURES = ("image_features", "patch_features")
# Pixels of decoded pictures of a sample: with fewer, 64 MiB, all go to the processor together.
MOST_HELD = 2**24


@dataclass
class Batch:
    """Rows as a model takes them, `model(**batch.inputs)`, and what is to be known of them.

    The counts are made where the rows still are lists: a question put to tensors on a GPU would
    wait for all the work queued there.

    Args:
        inputs: tensors by the model's own names, B rows each.
        sample_ids: where each row came from, for messages.
        answer_tokens: labels that a loss falls on.
        tokens: what the model reads, without padding and without rows that have no label.
        samples: rows with a label; a `MaskedRow` has none.
        left_out: rows without labels because a picture of theirs cannot be read.
    """

    inputs: dict[str, Tensor]
    sample_ids: list[str]
    answer_tokens: int = 0
    tokens: int = 0
    samples: int = 0
    left_out: int = 0

    @classmethod
    def of(
        cls,
        rows: Sequence[dict[str, Any]],
        inputs: dict[str, Tensor],
        read: Sequence[str] = ("input_ids",),
    ) -> "Batch":
        """The batch of `rows`, whose lists named in `read` are the texts that the model reads."""
        learned = [sum(label != IGNORED for label in row.get("labels", ())) for row in rows]
        real = [row for row, count in zip(rows, learned, strict=True) if count]
        tokens = sum(len(row[name]) for row in real for name in read)
        left_out = sum(row.get("left_out", False) for row in rows)
        ids = [row["sample_id"] for row in rows]
        return cls(inputs, ids, sum(learned), tokens, len(real), left_out)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; from pinned memory it gets there while the host goes on."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        return replace(self, inputs=moved)

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory; a DataLoader asks what it does not know for this method."""
        return replace(self, inputs={n: value.pin_memory() for n, value in self.inputs.items()})


class SampleDataset(Dataset[dict[str, Any]]):
    """Samples as the model's inputs, one row at a time; pictures are decoded when asked for.

    Args:
        samples: may be lazy, an item is fetched anew at each access.
        processor: has `.tokenizer`, `.image_processor` (that of the vision tower) and `.prompt`.
        prompts_only: rows end where the last answer starts, for generation.
        features: what was computed of the pictures; rows have it in place of pixels.
        skip_bad: a row with a picture that cannot be read keeps its place, with all labels masked
            and blank pictures, instead of an error; it is said.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Any,
        prompts_only: bool = False,
        features: FeatureCache | None = None,
        skip_bad: bool = False,
    ):
        self.samples = samples
        self.skip_bad = skip_bad
        self.processor = processor
        self.prompt = processor.prompt
        self.prompts_only = prompts_only
        self.features = features

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`: input_ids and labels (lists), pixel_values (M, F=1, 3, H, W) or None.

        A prompt has no labels. With features, these (M, *shape) stand in place of pixel_values,
        under the name that the model has for them; without pictures they are zeros (1, *shape).

        Raises:
            UserError: a picture of the sample cannot be read any more, or has no features, or the
                prompt has no place for something in the dialogue.
        """
        # A plain int: what a lazy Sequence makes of a subclass is its own affair.
        sample = self.samples[int(index)]
        tokenizer = self.processor.tokenizer
        # Ids stay lists: only the collator knows the length to pad to.
        row: dict[str, Any] = {"sample_id": sample.origin}
        with named(sample):
            if self.prompts_only:
                row["input_ids"] = self._prompt_ids(sample)
            else:
                encoded = encode_dialogue(sample.messages, tokenizer, self.prompt)
                row["input_ids"], labels = encoded
                row["labels"] = [IGNORED] * len(labels) if isinstance(index, MaskedRow) else labels
        try:
            if self.features is None:
                row["pixel_values"] = image_pixels(sample.images, self.processor.image_processor)
            else:
                row[self.features.name] = self.features.read(sample.images)
        except UserError as error:
            if not self.skip_bad or self.prompts_only:
                raise UserError(f"{sample.origin}: {error}") from error
            say(f"left out in this step: {sample.origin}: {error}")
            row |= {"labels": [IGNORED] * len(row["labels"]), "left_out": True}
            row |= self._blank(len(sample.images))
        return row

    def ids(self, index: int) -> list[int]:
        """The tokens of prompt `index`, whose pictures are not read.

        Raises:
            UserError: the prompt has no place for something in the dialogue.
        """
        sample = self.samples[int(index)]
        with named(sample):
            return self._prompt_ids(sample)

    def _prompt_ids(self, sample: Sample) -> list[int]:
        # The dialogue as it stood when the last question was asked, with earlier answers.
        return encode_prompt(sample.messages[:-1], self.processor.tokenizer, self.prompt)

    def _blank(self, count: int) -> dict[str, Tensor]:
        """What a row has of so many pictures that are not there: zeros, the mean colour."""
        if self.features is not None:
            return {self.features.name: torch.zeros(count, *self.features.shape)}
        side = self.processor.image_size
        return {"pixel_values": torch.zeros(count, 1, 3, side, side)}


def image_pixels(images: Sequence[ImageSource], image_processor: Any) -> Tensor | None:
    """Pictures as the vision tower reads them, (M, F=1, 3, H, W); None without pictures.

    Raises:
        UserError: a picture cannot be read.
    """
    if not images:
        return None
    made, held = [], []
    for number, image in enumerate(images, 1):
        held.append(load_image(image))
        # Processors take them one by one: only memory depends on how many are held.
        if number == len(images) or sum(p.width * p.height for p in held) > MOST_HELD:
            made.append(_processed(held, image_processor))
            held = []
    pixels = made[0] if len(made) == 1 else torch.cat(made)  # (M, 3, H, W)
    return pixels.unsqueeze(1)  # a picture is a film of one frame


def _processed(pictures: list[Image], image_processor: Any) -> Tensor:
    # Only with "shortest_edge" does the size in between depend on the picture's shape.
    if "shortest_edge" in image_processor.size:
        pictures = [limit_aspect(picture) for picture in pictures]
    return image_processor(images=pictures, return_tensors="pt")["pixel_values"]


@dataclass
class Collator:
    """Rows to a batch, padded to the longest; every batch has pictures, if only blank ones.

    Args:
        pad_token_id: fills `input_ids`; masked out in `attention_mask` and `labels`.
        image_size: of the blank pictures: pixels of a side.
        padding_side: "right" for training, "left" for prompts to be continued.

    Raises:
        ValueError: no pad token, or an unknown side.
    """

    pad_token_id: int
    image_size: int
    padding_side: str = "right"

    def __post_init__(self):
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is {self.padding_side!r}; expected 'left' or 'right'")
        if self.pad_token_id is None:
            raise ValueError("pad_token_id is None; add <PAD> (load_flamingo does) and pass its id")

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """A batch of what `padded_texts` makes and pixel_values (B, M, F, 3, H, W).

        Or, where the rows have features of their pictures (M, *shape), these (B, M, *shape).
        """
        inputs = padded_texts(rows, self.pad_token_id, self.padding_side)
        name = next((name for name in FEATURES if name in rows[0]), None)
        if name is None:
            return Batch.of(rows, inputs | {"pixel_values": self._pixels(rows)})
        # A row without pictures has a blank one, as in `_pixels`.
        features = pad_sequence([row[name] for row in rows], batch_first=True)
        return Batch.of(rows, inputs | {name: features})

    def _pixels(self, rows: Sequence[dict[str, Any]]) -> Tensor:
        """Pictures as (B, M, F, 3, H, W), rows with fewer than M filled up at the end.

        M is at least 1: through a surplus picture, which no token sees, every trained parameter
        takes part in every step, so that DDP needs no search for unused ones. Where another row has
        a picture that is seen, the model does not encode the surplus.
        """
        frames = check_frames(rows)
        # Zero is the mean colour after a tower's normalisation.
        blank = torch.zeros(1, frames, 3, self.image_size, self.image_size)
        pictures = [blank if row["pixel_values"] is None else row["pixel_values"] for row in rows]
        # At the end, because marks take a row's pictures in order: the surplus has no mark.
        return pad_sequence(pictures, batch_first=True)


def check_frames(rows: Sequence[dict[str, Any]]) -> int:
    """The frames of each picture of rows, whose pixel_values are (M, F, 3, H, W) or None.

    Raises:
        ValueError: they differ.
    """
    given = [row for row in rows if row["pixel_values"] is not None]
    frames = {row["pixel_values"].shape[1]: row["sample_id"] for row in given} or {1: ""}
    if len(frames) > 1:
        # A still picture repeated, or a film cut short, would be another than was given.
        found = ", ".join(f"{count} in {origin}" for count, origin in frames.items())
        raise ValueError(f"frames of a picture differ within a batch ({found}); make them equal")
    return next(iter(frames))


def padded_texts(
    rows: Sequence[dict[str, Any]], pad_token_id: int, side: str = "right"
) -> dict[str, Tensor]:
    """input_ids and attention_mask (B, T) of rows, and where they have them, labels (B, T)."""
    ids = [row["input_ids"] for row in rows]
    inputs = {
        "input_ids": padded(ids, pad_token_id, side),
        "attention_mask": padded([[1] * len(row) for row in ids], 0, side),
    }
    if "labels" in rows[0]:
        inputs["labels"] = padded([row["labels"] for row in rows], IGNORED, side)
    return inputs


def padded(rows: Sequence[Sequence[int]], fill: int, side: str = "right") -> Tensor:
    """Rows of any length as one tensor (B, T), filled up on the side given."""
    # Long, as embedding tables and cross-entropy want them.
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    # Generation continues a row at its right end, so its padding stands on the left.
    return pad_sequence(tensors, batch_first=True, padding_value=fill, padding_side=side)

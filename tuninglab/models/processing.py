"""The processor: texts with `<image>` marks and pictures in, model inputs out."""

from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from tuninglab.models.towers import picture_size
from tuninglab.special_tokens import EOC_TOKEN, IMAGE_TOKEN


class FlamingoProcessor(ProcessorMixin):
    """The image processor of a tower and a tokenizer that has `<image>` and `<|endofchunk|>`.

    Args:
        image_processor: of the vision tower, e.g. a `CLIPImageProcessorPil`.
        tokenizer: the language model's tokenizer with the two tokens added.

    Raises:
        ValueError: the tokenizer lacks one of the two tokens.
    """

    image_token = IMAGE_TOKEN
    eoc_token = EOC_TOKEN

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None):
        vocabulary = tokenizer.get_vocab()
        for token in (IMAGE_TOKEN, EOC_TOKEN):
            if token not in vocabulary:
                raise ValueError(
                    f"the tokenizer has no {token} token; add it, or build the processor with "
                    "tuninglab.models.flamingo_from_parts"
                )
        self.image_token_id = vocabulary[IMAGE_TOKEN]
        self.eoc_token_id = vocabulary[EOC_TOKEN]
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def image_size(self) -> int:
        """Pixels of a side of the pictures that it makes."""
        return picture_size(self.image_processor)

    @property
    def model_input_names(self) -> list[str]:
        """The model arguments that a call returns."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def __call__(
        self,
        text: str | list[str] | None = None,
        images: Any = None,
        padding: bool | str = True,
        return_tensors: str = "pt",
        padding_side: str = "left",
        **text_options: Any,
    ) -> BatchFeature:
        """Tokenize texts and prepare their images.

        Args:
            text: a text or a list of B texts.
            images: a list of images a text (rows may have none or differ); or, flat, one image or
                a list of images in the order of the marks in all texts.
            padding: handed to the tokenizer.
            return_tensors: "pt", the only one.
            padding_side: "left", so that `generate` continues each text at its end, whatever the
                tokenizer's own side (many have "right"); "right" is for training.
            **text_options: handed to the tokenizer.

        Returns:
            input_ids and attention_mask (B, T), and, if there are images, pixel_values
            (B, M, 1, 3, H, W) with M the largest count of a row; shorter rows end in zeros.

        Raises:
            ValueError: a text has more marks than images, or there are more or fewer rows of
                images than texts.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}; only 'pt' is supported")
        texts = [text] if isinstance(text, str) else text
        # Not ProcessorMixin's own call: it wants as many images as marks, and flattens the rows.
        data: dict[str, Any] = {}
        if texts is not None:
            text_options |= {"padding": padding, "padding_side": padding_side}
            data.update(self.tokenizer(texts, return_tensors="pt", **text_options))
        if images is not None:
            pixel_values = self.pixel_values(_by_row(images, texts))
            data.update({} if pixel_values is None else {"pixel_values": pixel_values})
        return BatchFeature(data)

    def pixel_values(self, rows: list[list[Any]]) -> Tensor | None:
        """Images of B rows -> (B, M, 1, 3, H, W), short rows padded with zeros; None if none."""
        flat = [image for row in rows for image in row]
        if not flat:
            return None
        pixels = self.image_processor(flat, return_tensors="pt")["pixel_values"]
        by_row = pixels.unsqueeze(1).split([len(row) for row in rows])
        # Padding needs no mask: the model never looks at images beyond the marks of a row.
        return pad_sequence(by_row, batch_first=True)  # pyright: ignore


def _by_row(images: Any, texts: list[str] | None) -> list[list[Any]]:
    if isinstance(images, (Image, torch.Tensor)):
        images = [images]
    if texts is None:
        return [list(row) if isinstance(row, list | tuple) else [row] for row in images]
    # In the text, because truncation may already have cut marks off the ids.
    marks = [text.count(IMAGE_TOKEN) for text in texts]
    if not all(isinstance(row, list | tuple) for row in images):
        if len(texts) > 1 and len(images) != sum(marks):
            raise ValueError(
                f"{len(images)} images in a flat list, but {sum(marks)} {IMAGE_TOKEN} marks in "
                f"{len(texts)} texts; give one list of images for each text"
            )
        flat = iter(images)
        # One text takes them all: images beyond its marks are allowed there.
        counts = [len(images)] if len(texts) == 1 else marks
        images = [[next(flat) for _ in range(count)] for count in counts]
    if len(images) != len(texts):
        raise ValueError(f"{len(texts)} texts but {len(images)} lists of images; give one a text")
    for number, (row, count) in enumerate(zip(images, marks, strict=True)):
        if count > len(row):
            raise ValueError(
                f"text {number} has {count} {IMAGE_TOKEN} marks but {len(row)} images; "
                "give an image for each mark, in their order"
            )
    return [list(row) for row in images]

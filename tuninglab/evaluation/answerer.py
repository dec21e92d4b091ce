"""A model with all that decides how it answers a batch, and the pixels of the batch's pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tuninglab.data.batches import image_pixels
from tuninglab.data.sample import ImageSource
from tuninglab.evaluation.answers import continued, prompt_inputs
from tuninglab.evaluation.classification import own_log_probs
from tuninglab.evaluation.encoded import EncodedPictures

Row = dict[str, Any]  # of a batch, as a SampleDataset of prompts has it


@dataclass(frozen=True)
class Answerer:
    """A model that answers, and how it does.

    Args:
        model: a Flamingo, or one wrapped by PEFT, of which nothing changes meanwhile.
        processor: its processor.
        accelerator: knows the processes and the format of numbers.
        pictures: where features of pictures are kept, `EncodedPictures.repeatable`.
        batch_size: questions, or pairs of a question and a candidate, computed together.
        max_new_tokens: longer answers are cut.
        beams: of generation; 1 is greedy.
        length_penalty: with beams, the power of its length that an answer's log-probability is
            divided by: above 0 favours long answers.
        normalise: compare candidates by the mean log-probability of a token, not by the sum.
    """

    model: Any
    processor: Any
    accelerator: Accelerator
    pictures: EncodedPictures
    batch_size: int = 32
    max_new_tokens: int = 12
    beams: int = 1
    length_penalty: float = 1.0
    normalise: bool = False

    def generated(self, rows: Sequence[Row]) -> list[str]:
        """The text that follows each of B prompts."""
        inputs = prompt_inputs(self.model, self.processor, rows, self.pictures)
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.beams}
        if self.beams > 1:
            options["length_penalty"] = self.length_penalty
        return continued(self.model, self.processor, inputs, **options)

    def ranked(
        self, rows: Sequence[Row], candidates: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[float]]:
        """For each of B prompts the probability of each of its candidates among them."""
        inputs = prompt_inputs(self.model, self.processor, rows, self.pictures)
        scores = own_log_probs(
            self.model, inputs, candidates, self.normalise, batch_size=self.batch_size
        )
        # Eight digits: what float32 holds, and no more for the file.
        return [[float(f"{p:.8g}") for p in row.double().softmax(-1).tolist()] for row in scores]


class BatchPixels:
    """Pixels of the pictures of a batch, each decoded once: examples stand in every condition."""

    def __init__(self, image_processor: Any):
        self.image_processor = image_processor
        # The picture too: while it is held, no other has its id.
        self.made: dict[int, tuple[ImageSource, Tensor]] = {}

    def of(self, images: Sequence[ImageSource]) -> Tensor | None:
        """Pictures as (M, F=1, 3, H, W); None without pictures.

        Raises:
            UserError: one cannot be read.
        """
        for image in images:
            if id(image) not in self.made:
                made: Any = image_pixels([image], self.image_processor)
                self.made[id(image)] = (image, made)
        return torch.cat([self.made[id(image)][1] for image in images]) if images else None

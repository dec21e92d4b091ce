"""What is measured: models of a stated shape with random weights, and batches for them.

What a step costs does not depend on the values of weights and tokens, as long as they are not
degenerate; nothing here says anything about quality.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, PreTrainedModel, T5Config
from transformers.utils import logging

from tuninglab.config.tuning import LoraTuning, TextTuningConfig, TuningConfig
from tuninglab.data.batches import Batch
from tuninglab.data.prompt import IGNORED
from tuninglab.models.configuration import FlamingoConfig
from tuninglab.models.flamingo import FlamingoForConditionalGeneration
from tuninglab.models.named_parts import SCOPE
from tuninglab.models.text_to_text import FLAN_T5_SMALL, TextToText

EPOCH_SAMPLES = 8000


@dataclass(frozen=True)
class TextWorkload:
    """A T5 with a head of its own, in the shape of flan-t5-small (77 million parameters)."""

    name: ClassVar[str] = "T5 in flan-t5-small's shape"
    model_class: ClassVar[type] = TextToText
    scope: ClassVar[str] = ""

    shape: dict[str, Any] = field(default_factory=FLAN_T5_SMALL.copy)
    batch_size: int = 8
    source_tokens: int = 256
    target_tokens: int = 64
    tuning: LoraTuning = field(default_factory=TextTuningConfig)

    @property
    def tokens_a_step(self) -> int:
        """Tokens that a step reads, of sources and targets."""
        return self.batch_size * (self.source_tokens + self.target_tokens)

    @property
    def vocabulary(self) -> int:
        """Rows of the token table."""
        return self.shape["vocab_size"]

    def make(self) -> PreTrainedModel:
        """The model with random weights."""
        model = _with_random_weights(TextToText, T5Config(**self.shape, dropout_rate=0.0))
        for name, parameter in model.named_parameters():
            if name.endswith(".q.weight"):
                # T5 leaves out the usual division of scores by the root of the head's width.
                parameter.data.mul_(self.shape["d_kv"] ** -0.5)
        return model

    def batch(self, seed: int, device: torch.device) -> Batch:
        """Random tokens."""
        random = torch.Generator().manual_seed(seed)
        ids, labels = (
            torch.randint(2, self.vocabulary, (self.batch_size, length), generator=random)
            for length in (self.source_tokens, self.target_tokens)
        )
        return _batch(ids, labels, device)

    def small(self) -> "TextWorkload":
        """A T5 of two layers a side."""
        model = {"d_model": 64, "d_kv": 16, "num_heads": 2, "d_ff": 96, "num_layers": 2}
        shape = self.shape | model | {"vocab_size": 256}
        return replace(self, shape=shape, batch_size=2, source_tokens=32, target_tokens=16)


LLAMA = {
    "model_type": "llama",
    "vocab_size": 32003,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
}
TOWER = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "image_size": 224,
    "patch_size": 14,
}


@dataclass(frozen=True)
class FlamingoWorkload:
    """A Flamingo whose language model is large beside its tower: 768 wide, 8 layers."""

    name: ClassVar[str] = "Flamingo of a LLaMA 768 wide, one image a row"
    model_class: ClassVar[type] = FlamingoForConditionalGeneration
    scope: ClassVar[str] = SCOPE

    text: dict[str, Any] = field(default_factory=LLAMA.copy)
    vision: dict[str, Any] = field(default_factory=TOWER.copy)
    cross_attn_every_n_layers: int = 2
    batch_size: int = 4
    tokens: int = 256
    answer_tokens: int = 64
    tuning: TuningConfig = field(default_factory=TuningConfig)

    @property
    def tokens_a_step(self) -> int:
        """Text tokens that a step reads."""
        return self.batch_size * self.tokens

    @property
    def vocabulary(self) -> int:
        """Rows of the token table."""
        return self.text["vocab_size"]

    @property
    def _marks(self) -> tuple[int, int]:
        """Ids of `<|endofchunk|>` and `<image>`: after the base vocabulary, before `<PAD>`."""
        return self.vocabulary - 3, self.vocabulary - 2

    def make(self) -> PreTrainedModel:
        """The model with random weights and gates half open."""
        eoc, image = self._marks
        model_config = FlamingoConfig(
            text_config=self.text | {"pad_token_id": self.vocabulary - 1},
            vision_config=CLIPVisionConfig(**self.vision),
            cross_attn_every_n_layers=self.cross_attn_every_n_layers,
            image_token_id=image,
            eoc_token_id=eoc,
        )
        return _with_random_weights(FlamingoForConditionalGeneration, model_config)

    def batch(self, seed: int, device: torch.device) -> Batch:
        """Random tokens after an image mark, a random picture a row, loss on the last tokens."""
        random = torch.Generator().manual_seed(seed)
        eoc, image = self._marks
        ids = torch.randint(3, eoc, (self.batch_size, self.tokens), generator=random)
        ids[:, 1] = image
        labels = torch.full_like(ids, IGNORED)
        labels[:, -self.answer_tokens :] = ids[:, -self.answer_tokens :]
        side = self.vision["image_size"]
        pixels = torch.randn(self.batch_size, 1, 1, 3, side, side, generator=random)
        return _batch(ids, labels, device, pixel_values=pixels)

    def small(self) -> "FlamingoWorkload":
        """A Flamingo of two layers."""
        both = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
        text = self.text | both | {"intermediate_size": 96, "vocab_size": 256}
        vision = self.vision | both | {"intermediate_size": 256, "image_size": 28}
        return replace(self, text=text, vision=vision, batch_size=2, tokens=32, answer_tokens=8)


# A shape, and how a model of it is made, tuned and fed.
Workload = TextWorkload | FlamingoWorkload


def _batch(ids: Tensor, labels: Tensor, device: torch.device, **pictures: Tensor) -> Batch:
    """On the device at once: what is measured is a step, not the bus."""
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    names = [f"random row {number}" for number in range(len(ids))]
    answers = int((labels != IGNORED).sum())
    return Batch(inputs | pictures, names, answers, ids.numel(), len(names)).to(device)


@dataclass(frozen=True)
class Bench:
    """Where rows are measured: the shape, the folder of its saved model, and the device."""

    workload: Workload
    base: Path
    device: torch.device

    def batch(self, seed: int) -> Batch:
        """A batch of the shape, on the device."""
        return self.workload.batch(seed, self.device)


def save_random(workload: Workload, folder: Path) -> int:
    """Save a model with random weights for every row to load; returns its parameters."""
    # A bar for a file on disk is gone before it can be read.
    logging.disable_progress_bar()
    model: Any = workload.make().bfloat16()
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def _with_random_weights(model_class: type, model_config: Any) -> Any:
    """Weights that a trained model could have: layers keep the size of what they pass on."""
    torch.manual_seed(0)
    model: Any = model_class(model_config)
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    for name, parameter in model.named_parameters():
        # Scales of norms are 1 and biases 0 already.
        if name.endswith("_gate"):
            parameter.fill_(0.5)
        elif any(parameter is table for table in tables):
            parameter.normal_()
        elif parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model

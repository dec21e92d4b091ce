"""Stage 3: a small CLIP vision tower, taught by what lies in each patch.

With a contrastive loss alone the colours and places suffice to tell captions apart and shapes are
not learned; with patch labels that leave out the place, the last layer forgets it. So every patch
is asked for all four.
"""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from tools.embedded_base.schedule import Progress, learning_rate, make_optimizer, optimize
from tools.embedded_base.strokes import sample_varied_digits
from tuninglab.embedded.digits import DigitScene, sample_digits
from tuninglab.embedded.scenes import COLORS, SHAPES, SIDE_PX, SIZES, Scene, sample_scene

PATCH_PX = 16
GRID = SIDE_PX // PATCH_PX
BATCH = 48
# classes per patch: colour, kind (shape or digit) and size, 0 for none; and which cell of the 3 x 3
# grid it is in
CLASSES = {
    "color": 1 + len(COLORS),
    "kind": 1 + len(SHAPES) + 10,
    "size": 1 + len(SIZES),
    "cell": 9,
}
WEIGHTS = {"color": 0.5, "kind": 2.0, "size": 0.5, "cell": 1.0}

Picture = Scene | DigitScene


def new_tower() -> CLIPVisionModel:
    """CLIP's vision architecture: 96 px, patches of 16 px, 128 wide, 4 layers."""
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE_PX,
        patch_size=PATCH_PX,
        hidden_act="quick_gelu",
        projection_dim=128,
    )
    return CLIPVisionModel(config)


def new_image_processor() -> CLIPImageProcessorPil:
    """CLIP's preprocessing at 96 px."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": SIDE_PX}, crop_size={"height": SIDE_PX, "width": SIDE_PX}
    )


def sample_picture(rng: random.Random) -> Picture:
    """A training picture: half scenes, half handwriting of the train writers, varied."""
    return sample_scene(rng) if rng.random() < 0.5 else sample_varied_digits(rng)


def pixels(pictures: list[Picture], processor: CLIPImageProcessorPil) -> torch.Tensor:
    """Rendered and normalised: (B, 3, 96, 96)."""
    raw = np.stack([np.asarray(p.draw(), np.float32) for p in pictures]) / 255
    normal = (raw - np.array(processor.image_mean, np.float32)) / np.array(
        processor.image_std, np.float32
    )
    return torch.from_numpy(normal.astype(np.float32)).permute(0, 3, 1, 2)


def labels(picture: Picture) -> np.ndarray:
    """Classes of every patch, (P, 4), in the order of CLASSES."""
    cells = np.zeros((9, 4), np.int64)
    cells[:, 3] = range(9)
    if isinstance(picture, DigitScene):
        for cell, ink in zip(picture.cells, picture.inks, strict=True):
            cells[cell, :2] = 1 + list(COLORS).index(ink.color), 1 + len(SHAPES) + ink.digit
    else:
        for t in picture.things:
            kind, size = 1 + SHAPES.index(t.shape), 1 + list(SIZES).index(t.size)
            cells[t.cell, :3] = 1 + list(COLORS).index(t.color), kind, size
    return cells.reshape(3, 3, 4).repeat(GRID // 3, 0).repeat(GRID // 3, 1).reshape(-1, 4)


def patch_loss(
    heads: torch.nn.Linear, tokens: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss over all patches, those with something on them six-fold, and accuracy on the latter.

    Args:
        heads: one linear layer for all classes.
        tokens: patch tokens of the last layer, (B, P, D).
        target: (B, P, 4).
    """
    scores = heads(tokens).split(list(CLASSES.values()), -1)
    filled = target[..., 1] > 0
    total, accuracy = torch.zeros(()), {}
    for k, (name, score) in enumerate(zip(CLASSES, scores, strict=True)):
        loss = F.cross_entropy(
            score.flatten(0, 1), target[..., k].flatten(), reduction="none"
        ).view(filled.shape)
        total = total + WEIGHTS[name] * (loss[filled].mean() + 0.2 * loss.mean())
        accuracy[name] = (score.argmax(-1) == target[..., k])[filled].float().mean().item()
    return total, accuracy


@torch.no_grad()
def patch_accuracy(
    tower: CLIPVisionModel, heads: torch.nn.Linear, processor: CLIPImageProcessorPil
) -> dict[str, float]:
    """Accuracy of the kind of object on unseen pictures: held-out pairs and validation writers."""
    rng, reached = random.Random(77), {}
    sources = {
        "held_out_pairs": lambda: sample_scene(rng, held_out=True),
        "val_writers": lambda: sample_digits(rng, "val"),
    }
    for name, draw in sources.items():
        pictures = [draw() for _ in range(200)]
        tokens = tower(pixels(pictures, processor)).last_hidden_state[:, 1:]
        target = torch.from_numpy(np.stack([labels(p) for p in pictures]))
        for label, value in patch_loss(heads, tokens, target)[1].items():
            reached[f"{name}_{label}"] = round(value, 4)
    return reached


def train_tower(out: Path, steps: int) -> dict[str, float]:
    """Train from nothing and save to `out/tower`; returns what it reached."""
    torch.manual_seed(0)
    tower, processor = new_tower(), new_image_processor()
    heads = torch.nn.Linear(tower.config.hidden_size, sum(CLASSES.values()))
    optimizer = make_optimizer([(tower, 1.0), (heads, 1.0)])
    progress, rng = Progress("tower", steps), random.Random(2)
    for step in range(steps):
        pictures = [sample_picture(rng) for _ in range(BATCH)]
        target = torch.from_numpy(np.stack([labels(p) for p in pictures]))
        tokens = tower(pixels(pictures, processor)).last_hidden_state[:, 1:]
        loss, accuracy = patch_loss(heads, tokens, target)
        optimize(optimizer, loss, learning_rate(step, steps, 1e-3))
        progress(step, loss=loss.item(), **accuracy)
        if step % 1000 == 999:
            print(patch_accuracy(tower, heads, processor), flush=True)
    tower.eval().save_pretrained(out / "tower")
    processor.save_pretrained(out / "tower")
    return patch_accuracy(tower, heads, processor)
